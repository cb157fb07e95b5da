package elevated

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

const (
	serviceName = "berth"
	displayName = "Berth virtual machines"
	description = "Starts Berth's virtual machine for the user who installed it. It runs only while that does."

	// idleAfter ends a service that nobody uses; the next client starts it.
	idleAfter = time.Minute
	// stopWithin bounds the end of the service and its machines.
	stopWithin = 30 * time.Second
)

// Status is what Query finds.
type Status struct {
	Installed bool
	Running   bool
}

// Query says whether the service is there. It needs no rights.
func Query() (Status, error) {
	m, s, err := openService(windows.SERVICE_QUERY_STATUS)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return Status{}, nil
	}
	if err != nil {
		return Status{}, err
	}
	defer windows.CloseServiceHandle(m)
	defer windows.CloseServiceHandle(s)
	var status windows.SERVICE_STATUS
	if err := windows.QueryServiceStatus(s, &status); err != nil {
		return Status{}, err
	}
	return Status{Installed: true, Running: status.CurrentState != windows.SERVICE_STOPPED}, nil
}

// openService opens the service with few rights: package mgr wants all.
func openService(access uint32) (manager, service windows.Handle, err error) {
	manager, err = windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return 0, 0, fmt.Errorf("open Windows' service manager: %w", err)
	}
	name, err := windows.UTF16PtrFromString(serviceName)
	if err == nil {
		service, err = windows.OpenService(manager, name, access)
	}
	if err != nil {
		windows.CloseServiceHandle(manager)
		return 0, 0, err
	}
	return manager, service, nil
}

// start starts the service, as its access list allows its user.
func start() error {
	m, s, err := openService(windows.SERVICE_START)
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrNotInstalled, err)
	}
	defer windows.CloseServiceHandle(m)
	defer windows.CloseServiceHandle(s)
	err = windows.StartService(s, 0, nil)
	if err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
		return fmt.Errorf("start the service %s: %w", serviceName, err)
	}
	return nil
}

// ProgramDir is where the service's program lies: only administrators can write
// there.
func ProgramDir() (string, error) {
	dir, err := windows.KnownFolderPath(windows.FOLDERID_ProgramFiles, 0)
	if err != nil {
		return "", fmt.Errorf("find the folder of programs: %w", err)
	}
	return filepath.Join(dir, "Berth"), nil
}

// Install installs a copy of the program for the user with the SID, in place of what
// was installed. The copy is run with args and the SID. It takes an elevated process.
func Install(program, sid string, args ...string) error {
	if _, err := windows.StringToSid(sid); err != nil {
		return fmt.Errorf("%q is no SID", sid)
	}
	if err := Uninstall(); err != nil {
		return err
	}
	dir, err := ProgramDir()
	if err != nil {
		return err
	}
	target := filepath.Join(dir, "berth-service.exe")
	if err := copyFile(program, target); err != nil {
		return fmt.Errorf("install the service's program: %w", err)
	}
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("open Windows' service manager: %w", err)
	}
	defer m.Disconnect()
	s, err := m.CreateService(serviceName, target, mgr.Config{
		StartType: mgr.StartManual, DisplayName: displayName, Description: description,
	}, append(args, sid)...)
	if err != nil {
		return fmt.Errorf("install the service: %w", err)
	}
	defer s.Close()
	if err := admit(s.Handle, sid); err != nil {
		return errors.Join(fmt.Errorf("let the user start the service: %w", err), s.Delete())
	}
	return nil
}

// serviceAccess is the SDDL of the service: the user may look at it and start it.
func serviceAccess(sid string) string {
	return "D:P(A;;CCLCSWRPWPDTLOCRRC;;;SY)(A;;CCDCLCSWRPWPDTLOCRSDRCWDWO;;;BA)(A;;CCLCSWLOCRRC;;;IU)(A;;CCLCSWRPLOCRRC;;;" + sid + ")"
}

func admit(service windows.Handle, sid string) error {
	sd, err := windows.SecurityDescriptorFromString(serviceAccess(sid))
	if err != nil {
		return err
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetSecurityInfo(service, windows.SE_SERVICE, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// Uninstall stops the service and removes it and its files, if it is there. It takes
// an elevated process.
func Uninstall() error {
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("open Windows' service manager: %w", err)
	}
	defer m.Disconnect()
	s, err := m.OpenService(serviceName)
	if err == nil {
		err = errors.Join(stop(s), s.Delete(), s.Close())
		if err != nil {
			return fmt.Errorf("remove the service: %w", err)
		}
	} else if !errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return fmt.Errorf("remove the service: %w", err)
	}
	dir, err := ProgramDir()
	if err != nil {
		return err
	}
	// The program's file is free a moment after its process has ended.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if err = os.RemoveAll(dir); err == nil || time.Now().After(end) {
			return err
		}
	}
}

func stop(s *mgr.Service) error {
	status, err := s.Control(svc.Stop)
	for end := time.Now().Add(stopWithin); err == nil && status.State != svc.Stopped; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("it does not stop")
		}
		status, err = s.Query()
	}
	if errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
		return nil
	}
	return err
}

// Run is the service's process, for the user with the SID. It returns when Windows
// stops the service, or nobody has used it for a while.
func Run(sid string, log *slog.Logger) error {
	h := &handler{sid: sid, log: log}
	if err := svc.Run(serviceName, h); err != nil {
		return fmt.Errorf("this is the service's own command: Windows runs it: %w", err)
	}
	return h.err
}

type handler struct {
	sid string
	log *slog.Logger
	err error
}

// Execute implements svc.Handler.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	status <- svc.Status{State: svc.StartPending}
	l, err := Listen(h.sid)
	if err != nil {
		h.err = err
		h.log.Error("cannot open the pipe", "error", err)
		return false, uint32(windows.ERROR_PIPE_NOT_CONNECTED)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{Identify: Identify, Log: h.log}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	h.log.Info("the service runs", "user", h.sid)
	h.serve(s, requests, status)
	status <- svc.Status{State: svc.StopPending}
	cancel()
	l.Close()
	h.err = <-served
	h.log.Info("the service ends", "error", h.err)
	return false, 0
}

// serve answers Windows until the service has to stop.
func (h *handler) serve(s *Server, requests <-chan svc.ChangeRequest, status chan<- svc.Status) {
	tick := time.NewTicker(idleAfter / 4)
	defer tick.Stop()
	for {
		select {
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown:
				return
			}
		case <-tick.C:
			if s.Idle() > idleAfter {
				return
			}
		}
	}
}
