package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/windows"

	"github.com/berthvm/berth/vm"
)

// Local is the Host Compute System of this Windows, which this process must be
// allowed to use: it has to be elevated.
func Local() Service { return local{} }

// LocalAs is Local for another user, whose impersonation token it is: machines get
// files that this user may open.
// The token stays the caller's, who keeps it for as long as a machine lives.
func LocalAs(user windows.Token) Service { return local{user} }

type local struct{ user windows.Token } // 0 for this process's user

// enable is how to switch the system on.
const enable = `as administrator, run "dism /online /enable-feature /featurename:VirtualMachinePlatform /all" and restart Windows`

// Check is what of Probe needs no rights. The error wraps vm.ErrUnavailable.
func Check() (version string, err error) {
	if runtime.GOARCH != "amd64" {
		return "", fmt.Errorf("%w: Hyper-V boots no Linux kernel by itself on %s", vm.ErrUnavailable, runtime.GOARCH)
	}
	v := windows.RtlGetVersion()
	name := fmt.Sprintf("Hyper-V, Windows %d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber)
	const oldest = 17763 // 1809: schema 2.1; 1903 has LinuxKernelDirect for all
	if v.MajorVersion < 10 || v.BuildNumber < oldest {
		return "", fmt.Errorf("%w: Windows 10 version 1809 or newer is needed: update Windows", vm.ErrUnavailable)
	}
	if err := dll.Load(); err != nil || !hasService("vmcompute") {
		return "", fmt.Errorf("%w: the feature VirtualMachinePlatform is off: %s", vm.ErrUnavailable, enable)
	}
	return name, nil
}

// hasService tells whether Windows has a service, as far as anybody may know.
func hasService(name string) bool {
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return true // let others find out
	}
	defer windows.CloseServiceHandle(m)
	n, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return false
	}
	s, err := windows.OpenService(m, n, windows.SERVICE_QUERY_STATUS)
	if err == nil {
		windows.CloseServiceHandle(s)
	}
	return !errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST)
}

// Probe implements Service.
func (local) Probe(context.Context) (string, error) {
	name, err := Check()
	if err != nil {
		return "", err
	}
	err = serviceProperties()
	var f *Failure
	switch {
	case err == nil:
		return name, nil
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("%w: %w", ErrElevation, err)
	case errors.As(err, &f) && (f.Code == hrServiceMissing || f.Code == hrNoHypervisor || f.Code == hrNotInstalled):
		return "", fmt.Errorf("%w: the feature VirtualMachinePlatform is off, or virtualization in the firmware (%w): %s", vm.ErrUnavailable, err, enable)
	}
	return "", fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
}

// Create implements Service.
func (l local) Create(ctx context.Context, d Design) (_ System, err error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	s := &system{id: d.ID, user: l.user, events: make(chan Event, 16)}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	var files []fileToHold
	for _, f := range d.Files() {
		files = append(files, fileToHold{File: f})
	}
	paths, err := s.grant(files)
	if err != nil {
		return nil, err
	}
	d = d.WithFiles(paths)
	h, err := createSystem(ctx, d.ID, d.Document())
	if err != nil {
		return nil, fmt.Errorf("make the machine: %w", err)
	}
	s.handle = h
	if s.forget, err = h.watch(s.event); err != nil {
		return nil, err
	}
	document, err := h.order(ctx, procProperties, nil)
	if err != nil {
		return nil, fmt.Errorf("ask for the machine's properties: %w", err)
	}
	var p properties
	if err := json.Unmarshal([]byte(document), &p); err != nil || !guidShape.MatchString(strings.ToLower(p.RuntimeID)) {
		return nil, fmt.Errorf("the machine has the runtime id %q (%w)", p.RuntimeID, err)
	}
	s.runtimeID = strings.ToLower(p.RuntimeID)
	return s, nil
}

// properties are what the system says of a machine.
type properties struct {
	RuntimeID string `json:"RuntimeId"`
	State     string
}

// system implements System.
type system struct {
	handle    systemHandle
	id        string
	runtimeID string
	user      windows.Token
	forget    func()
	granted   []string // files that the machine may open

	mu     sync.Mutex // guards what follows
	events chan Event
	over   bool // events is closed
	closed bool
	busy   sync.WaitGroup // calls that use the handle
}

// RuntimeID implements System.
func (s *system) RuntimeID() string { return s.runtimeID }

// Events implements System.
func (s *system) Events() <-chan Event { return s.events }

// event takes one from the system.
func (s *system) event(kind uint32, data string) {
	switch kind {
	case eventExited:
		s.tell(exit(data))
	case eventCrashInitiated:
		s.tell(Event{Crashed: true})
	case eventServiceDisconnect:
		s.tell(Event{Exited: true, Failure: "Windows' Host Compute Service has ended, and the machine with it"})
	}
}

// tell never blocks: a machine has few events.
func (s *system) tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	select {
	case s.events <- e:
	default:
		if !e.Exited {
			return
		}
		<-s.events // full of what does not matter any more
		s.events <- e
	}
	if e.Exited {
		s.over = true
		close(s.events)
	}
}

// Do implements System.
func (s *system) Do(ctx context.Context, o Order) error {
	if err := o.Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return vm.ErrNotRunning
	}
	s.busy.Add(1)
	s.mu.Unlock()
	defer s.busy.Done()
	err := s.do(ctx, o)
	var f *Failure
	if errors.As(err, &f) && f.Code == hrNotRunning {
		return vm.ErrNotRunning
	}
	return err
}

func (s *system) do(ctx context.Context, o Order) (err error) {
	switch o.Op {
	case OpStart:
		_, err = s.handle.order(ctx, procStart, nil)
	case OpShutDown:
		_, err = s.handle.order(ctx, procShutDown, shutDownOptions())
	case OpTerminate:
		_, err = s.handle.order(ctx, procTerminate, nil)
	case OpPause:
		_, err = s.handle.order(ctx, procPause, nil)
	case OpResume:
		_, err = s.handle.order(ctx, procResume, nil)
	case OpSave:
		err = s.save(ctx, o.Path)
	case OpMemory:
		err = s.handle.modify(ctx, memoryChange(o.MemoryMiB))
	}
	return err
}

// grant lets the machine open files, and returns their paths without links.
func (s *system) grant(files []fileToHold) ([]string, error) {
	held, err := hold(s.user, files)
	if err != nil {
		return nil, err
	}
	defer held.release()
	for _, path := range held.paths {
		if err := grant(s.id, path); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.granted = append(s.granted, path)
		s.mu.Unlock()
	}
	return held.paths, nil
}

func (s *system) save(ctx context.Context, path string) error {
	paths, err := s.grant([]fileToHold{{File{Path: path, Write: true}, true}})
	if err != nil {
		return err
	}
	_, err = s.handle.order(ctx, procSave, saveOptions(paths[0]))
	return err
}

// Close implements System. The system ends a machine whose last handle is closed.
func (s *system) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	if s.handle != 0 {
		ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
		defer cancel()
		s.handle.order(ctx, procTerminate, nil) // an error says that it does not run
		s.busy.Wait()                           // soon: there is nothing any more that could take its time
		procClose.Call(uintptr(s.handle))
	}
	if s.forget != nil {
		s.forget()
	}
	var err error
	for _, path := range s.granted {
		err = errors.Join(err, revoke(s.id, path))
	}
	s.tell(Event{Exited: true, Forced: true})
	return err
}
