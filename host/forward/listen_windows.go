package forward

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

func listen(path string) (net.Listener, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("cannot find out who the user is: %w", err)
	}
	l, err := winio.ListenPipe(path, &winio.PipeConfig{
		SecurityDescriptor: descriptor(user.User.Sid.String()),
		MessageMode:        true, // CloseWrite needs it
		InputBufferSize:    bufferSize,
		OutputBufferSize:   bufferSize,
	})
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		return nil, fmt.Errorf("%s: %w", path, ErrInUse) // the first instance of a pipe decides
	}
	return l, err
}

// descriptor lets in the system, administrators and one user.
func descriptor(sid string) string {
	return "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;" + sid + ")"
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	return winio.DialPipeContext(ctx, path)
}
