package build

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/tracing"
	"github.com/moby/buildkit/util/tracing/detect"
)

// maxMessage is what BuildKit's clients send at most, in bytes.
const maxMessage = 16 << 20

// serve starts the gRPC server.
func (b *Builder) serve(o *opened) {
	o.server = grpc.NewServer(
		grpc.StatsHandler(tracing.ServerStatsHandler(otelgrpc.WithTracerProvider(o.traces), otelgrpc.WithPropagators(propagation.TraceContext{}))),
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if info.FullMethod != controlapi.Control_Solve_FullMethodName {
				return handle(ctx, req)
			}
			defer o.room.begin(ctx)()
			resp, err := handle(ctx, req)
			if err != nil {
				b.sweep(o)
			}
			return resp, err
		}),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
	)
	o.control.Register(o.server)
	grpc_health_v1.RegisterHealthServer(o.server, health.NewServer())
	o.conns = newConnListener()
	o.serving.Go(func() { _ = o.server.Serve(o.conns) })
}

// sweep removes what a failed build leaves: it may be what has filled the disk, and
// the next build must find room. BuildKit lets go of a failed step's file systems
// when Go's collector finds that nobody has the step's error any more, which may
// be minutes away in an idle process; so it is told to look now, twice, since the
// second round ends after the first one's finalizers have begun. It returns at once,
// for its caller still holds the error.
func (b *Builder) sweep(o *opened) {
	o.serving.Go(func() {
		time.Sleep(sweepDelay)
		runtime.GC()
		found := make(chan struct{})
		runtime.SetFinalizer(&marker{}, func(*marker) { close(found) })
		runtime.GC()
		<-found
		if err := o.worker.GarbageCollect(context.Background()); err != nil {
			b.opts.Log.Warn("cannot remove what a failed build left", "error", err)
		}
	})
}

// marker is large enough to be collected on its own.
type marker struct{ _ [64]byte }

// sweepDelay is the time in which a failed build's error reaches its client.
const sweepDelay = 200 * time.Millisecond

// ServeHTTP serves BuildKit's API over an HTTP/2 connection of net/http's.
func (b *Builder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o, err := b.get()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	o.server.ServeHTTP(w, r)
}

// Session serves a client's session, in which the client answers calls for its
// files, secrets and credentials. It takes the connection over and returns when
// the session ends. An error means that the connection was not taken.
func (b *Builder) Session(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	o, err := b.get()
	if err != nil {
		return err
	}
	return o.sessions.HandleHTTPRequest(ctx, w, r)
}

// connListener is a listener whose connections are put in.
type connListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newConnListener() *connListener {
	return &connListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *connListener) put(conn net.Conn) error {
	select {
	case l.conns <- conn:
		return nil
	case <-l.done:
		conn.Close()
		return errClosed
	}
}

// Accept implements net.Listener.
func (l *connListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *connListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *connListener) Addr() net.Addr { return &net.UnixAddr{Name: "buildkit", Net: "unix"} }

// traceBuilds has BuildKit keep what happens in a build for its history, in which
// clients look at it as a trace. Clients send their own part.
func traceBuilds() *sdktrace.TracerProvider {
	detect.Recorder = detect.NewTraceRecorder()
	return sdktrace.NewTracerProvider(sdktrace.WithSyncer(detect.Recorder))
}
