package elevated

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"runtime"
	"time"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"

	"github.com/berthvm/berth/vm/hyperv/compute"
)

// startWithin bounds the service's start, which the first client waits for.
const startWithin = 10 * time.Second

// Client is the service, as this process's user may use it. It is started when it
// does not run.
func Client() compute.Service { return client{dialService, check} }

func check() error {
	_, err := compute.Check()
	return err
}

func dialService(ctx context.Context) (net.Conn, error) {
	c, err := dialPipe(ctx, Pipe)
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	if err := start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		c, err := dialPipe(ctx, Pipe)
		if !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the service %s does not answer: %w", serviceName, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// dialPipe connects to the service's pipe and lets it act as the user, once it is
// sure whose the pipe is.
func dialPipe(ctx context.Context, name string) (net.Conn, error) {
	c, err := winio.DialPipeAccessImpLevel(ctx, name, clientAccess, winio.PipeImpLevelImpersonation)
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		return nil, fmt.Errorf(`%w: the service was installed for another user: run "berth service install" as the one who shall have it`, ErrNotInstalled)
	}
	if err != nil {
		return nil, err
	}
	if err := checkOwner(handleOf(c)); err != nil {
		c.Close()
		return nil, fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	return c, nil
}

func handleOf(c net.Conn) windows.Handle {
	return windows.Handle(c.(interface{ Fd() uintptr }).Fd())
}

// checkOwner refuses a pipe that somebody else has made: only administrators can
// make an object that belongs to the system or to them. The user's own is no danger.
func checkOwner(pipe windows.Handle) error {
	sd, err := windows.GetSecurityInfo(pipe, windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("cannot tell whose the pipe %s is: %w", Pipe, err)
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return fmt.Errorf("cannot tell whose the pipe %s is: %w", Pipe, err)
	}
	self, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return err
	}
	if owner.IsWellKnown(windows.WinLocalSystemSid) || owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) || owner.Equals(self.User.Sid) {
		return nil
	}
	return fmt.Errorf("the pipe %s belongs to %s, which is neither the system nor an administrator", Pipe, owner)
}

// Listen opens the service's pipe for one user, by SID.
func Listen(sid string) (net.Listener, error) {
	return winio.ListenPipe(Pipe, &winio.PipeConfig{SecurityDescriptor: access(sid)})
}

var procImpersonate = windows.NewLazySystemDLL("advapi32.dll").NewProc("ImpersonateNamedPipeClient")

// Identify is Server.Identify for pipes.
func Identify(c net.Conn) (Caller, error) {
	token, err := clientToken(handleOf(c))
	if err != nil {
		return Caller{}, err
	}
	user, err := token.GetTokenUser()
	if err != nil {
		return Caller{}, errors.Join(err, token.Close())
	}
	return Caller{SID: user.User.Sid.String(), Service: compute.LocalAs(token), Close: func() { token.Close() }}, nil
}

// clientToken is the token of who has written to the pipe.
func clientToken(pipe windows.Handle) (token windows.Token, err error) {
	runtime.LockOSThread()
	if r, _, err := procImpersonate.Call(uintptr(pipe)); r == 0 {
		runtime.UnlockOSThread()
		return 0, fmt.Errorf("ImpersonateNamedPipeClient: %w", err)
	}
	err = windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_QUERY|windows.TOKEN_IMPERSONATE|windows.TOKEN_DUPLICATE, true, &token)
	if back := windows.RevertToSelf(); back != nil {
		return 0, errors.Join(err, back) // the thread ends with the goroutine: it stays locked
	}
	runtime.UnlockOSThread()
	return token, err
}
