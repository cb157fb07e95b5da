package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// unpacker is containerd's, with progress and with an end that can be waited for.
type unpacker struct {
	*unpack.Unpacker
	cancel context.CancelFunc
}

// unpacker returns an unpacker for the manifests that match. Each layer is on the
// disk before the database knows it: a power cut leaves no empty files.
func (s *Store) unpacker(ctx context.Context, match platforms.MatchComparer, report *reporter) (unpacker, error) {
	ctx, cancel := context.WithCancel(ctx)
	u, err := unpack.NewUnpacker(ctx, s.content,
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform:                match,
			SnapshotterKey:          snapshotter,
			Snapshotter:             s.snap,
			SnapshotterCapabilities: []string{snapshots.RebaseCap},
			Applier:                 reportingApplier{s.applier, report},
			ApplyOpts:               []diff.ApplyOpt{diff.WithSyncFs(true)},
		}),
		unpack.WithDuplicationSuppressor(s.work),
		unpack.WithLimiter(semaphore.NewWeighted(maxDownloads)),
		unpack.WithUnpackLimiter(semaphore.NewWeighted(maxUnpacks)),
		unpack.WithFetchAllContent(),
	)
	if err != nil {
		cancel()
		return unpacker{}, err
	}
	return unpacker{u, cancel}, nil
}

// wait waits until all is unpacked.
func (u unpacker) wait() error {
	defer u.cancel()
	_, err := u.Wait()
	return err
}

// stop ends what is being unpacked and waits for it.
func (u unpacker) stop() error {
	u.cancel()
	_, err := u.Wait()
	return err
}

// reportingApplier tells how far a layer's unpacking is.
type reportingApplier struct {
	diff.Applier
	report *reporter
}

func (a reportingApplier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	opts = append(opts, diff.WithProgress(func(_ ocispec.Descriptor, at int64) {
		a.report.layer(desc.Digest, "Extracting", at, desc.Size)
	}))
	out, err := a.Applier.Apply(ctx, desc, direct(mounts), opts...)
	if err != nil {
		return out, &layerError{desc.Digest, err}
	}
	a.report.layer(desc.Digest, "Pull complete", 0, 0)
	return out, nil
}

// direct lets the applier write into the layer's own directory. Without, it mounts
// the lowest layer somewhere, and a crash leaves it mounted.
func direct(mounts []mount.Mount) []mount.Mount {
	if len(mounts) != 1 || mounts[0].Type != "bind" {
		return mounts
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=" + mounts[0].Source}}}
}

// layerError is a layer that cannot be unpacked.
type layerError struct {
	layer digest.Digest
	err   error
}

func (e *layerError) Error() string {
	return fmt.Sprintf("failed to register layer %s: %s", e.layer, e.err)
}

func (e *layerError) Unwrap() []error {
	if errors.Is(e.err, unix.ENOSPC) || errors.Is(e.err, context.Canceled) {
		return []error{e.err}
	}
	return []error{e.err, errdefs.ErrInvalidArgument}
}

// layerProblem cuts what the unpacker says down to the layer that is the reason.
func layerProblem(err error) error {
	var layer *layerError
	if errors.As(err, &layer) {
		return layer
	}
	return err
}

const copyBuffer = 128 << 10 // bytes

// copyAt writes r, which is size bytes long, from offset on. More bytes than size
// are an error. It returns how many were written.
func copyAt(ctx context.Context, w content.Writer, r io.Reader, offset, size int64, progress func(at int64)) (int64, error) {
	if offset > 0 {
		seeker, ok := r.(io.Seeker)
		if !ok {
			return 0, fail(errdefs.ErrUnavailable, "cannot resume at %d", offset)
		}
		if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
			return 0, err
		}
	}
	buf := make([]byte, copyBuffer)
	var written int64
	for {
		n, err := r.Read(buf)
		if offset+written+int64(n) > size {
			return written, fail(errdefs.ErrFailedPrecondition, "more than %d bytes came", size)
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return written, fmt.Errorf("cannot store a blob: %w", err)
			}
			written += int64(n)
			progress(offset + written)
		}
		switch {
		case err == io.EOF && offset+written < size:
			return written, fail(errdefs.ErrUnavailable, "only %d of %d bytes came", offset+written, size)
		case err == io.EOF:
			return written, nil
		case err != nil && ctx.Err() != nil:
			return written, context.Cause(ctx)
		case err != nil:
			return written, err
		}
	}
}
