package compute

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// computecore.dll. LazyDLL of x/sys looks in the system's directory only.
var (
	dll = windows.NewLazySystemDLL("computecore.dll")

	procCreateOperation  = dll.NewProc("HcsCreateOperation")
	procCloseOperation   = dll.NewProc("HcsCloseOperation")
	procWaitForOperation = dll.NewProc("HcsWaitForOperationResult")
	procGrant            = dll.NewProc("HcsGrantVmAccess")
	procRevoke           = dll.NewProc("HcsRevokeVmAccess")
	procCreate           = dll.NewProc("HcsCreateComputeSystem")
	procClose            = dll.NewProc("HcsCloseComputeSystem")
	procSetCallback      = dll.NewProc("HcsSetComputeSystemCallback")
	procProperties       = dll.NewProc("HcsGetComputeSystemProperties")
	procStart            = dll.NewProc("HcsStartComputeSystem")
	procShutDown         = dll.NewProc("HcsShutDownComputeSystem")
	procTerminate        = dll.NewProc("HcsTerminateComputeSystem")
	procPause            = dll.NewProc("HcsPauseComputeSystem")
	procResume           = dll.NewProc("HcsResumeComputeSystem")
	procSave             = dll.NewProc("HcsSaveComputeSystem")
	procModify           = dll.NewProc("HcsModifyComputeSystem")
	procServiceProps     = dll.NewProc("HcsGetServiceProperties")
)

// Handles of the system's.
type (
	systemHandle    uintptr
	operationHandle uintptr
)

// The HRESULTs that are told apart.
const (
	hrAccessDenied   = 0x80070005
	hrNotRunning     = 0xc0370110 // HCS_E_SYSTEM_ALREADY_STOPPED
	hrServiceMissing = 0x80070424 // ERROR_SERVICE_DOES_NOT_EXIST
	hrNoHypervisor   = 0xc0351000 // ERROR_HV_NOT_PRESENT
	hrNotInstalled   = 0x80370102 // HCS_E_HYPERV_NOT_INSTALLED
	hrPending        = 0xc0370103 // HCS_E_OPERATION_PENDING: wait for the operation
)

// Failure is an HRESULT of the system's.
type Failure struct {
	Call    string
	Code    uint32
	Message string // the system's own words, may be empty
}

// Error implements error.
func (f *Failure) Error() string {
	text := f.Message
	if text == "" {
		text = windows.Errno(f.Code).Error()
	}
	return fmt.Sprintf("%s: %s (%s)", f.Call, text, hresult(int32(f.Code)))
}

// Is makes a refusal an fs.ErrPermission.
func (f *Failure) Is(target error) bool {
	return f.Code == hrAccessDenied && errors.Is(windows.ERROR_ACCESS_DENIED, target)
}

// hcall calls a function that returns an HRESULT. Pointers among the arguments are
// converted in the call itself.
//
//go:uintptrescapes
func hcall(proc *windows.LazyProc, args ...uintptr) error {
	if err := proc.Find(); err != nil {
		return err
	}
	r, _, _ := proc.Call(args...)
	if code := uint32(r); int32(code) < 0 && code != hrPending {
		return &Failure{Call: proc.Name, Code: code}
	}
	return nil
}

// text is s as the system takes it; nothing is nil.
func text(s string) (*uint16, error) {
	if s == "" {
		return nil, nil
	}
	return windows.UTF16PtrFromString(s)
}

// take copies a string of the system's and frees it.
func take(p *uint16) string {
	if p == nil {
		return ""
	}
	s := windows.UTF16PtrToString(p)
	windows.LocalFree(windows.Handle(unsafe.Pointer(p)))
	return s
}

// operation runs one of the calls that take an operation, and waits until that is
// done. It cannot be taken back: when ctx ends, the call goes on unseen.
func operation(ctx context.Context, call func(operationHandle) error) (string, error) {
	if err := procCreateOperation.Find(); err != nil {
		return "", err
	}
	r, _, err := procCreateOperation.Call(0, 0)
	if r == 0 {
		return "", fmt.Errorf("HcsCreateOperation: %w", err)
	}
	op := operationHandle(r)
	if err := call(op); err != nil {
		procCloseOperation.Call(uintptr(op))
		return "", err
	}
	type result struct {
		document string
		err      error
	}
	done := make(chan result, 1)
	go func() {
		var p *uint16
		err := hcall(procWaitForOperation, uintptr(op), windows.INFINITE, uintptr(unsafe.Pointer(&p)))
		document := take(p)
		procCloseOperation.Call(uintptr(op))
		done <- result{document, explain(err, document)}
	}()
	select {
	case r := <-done:
		return r.document, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// resultError is what the system says of an operation that failed.
type resultError struct {
	Error        int32
	ErrorMessage string
}

// explain adds the system's words to its error.
func explain(err error, document string) error {
	var f *Failure
	var words resultError
	if errors.As(err, &f) && document != "" && json.Unmarshal([]byte(document), &words) == nil {
		f.Message = words.ErrorMessage
	}
	return err
}

// grant lets the machine open a file.
func grant(id, path string) error {
	if err := access(procGrant, id, path); err != nil {
		return fmt.Errorf("let the machine open %s: %w", path, err)
	}
	return nil
}

// revoke takes back what grant gave, which would stay in the file's access list.
func revoke(id, path string) error { return access(procRevoke, id, path) }

func access(proc *windows.LazyProc, id, path string) error {
	i, err := text(id)
	if err != nil {
		return err
	}
	p, err := text(path)
	if err != nil {
		return err
	}
	return hcall(proc, uintptr(unsafe.Pointer(i)), uintptr(unsafe.Pointer(p)))
}

// createSystem makes a machine.
func createSystem(ctx context.Context, id string, document []byte) (h systemHandle, err error) {
	i, err := text(id)
	if err != nil {
		return 0, err
	}
	d, err := text(string(document))
	if err != nil {
		return 0, err
	}
	_, err = operation(ctx, func(op operationHandle) error {
		return hcall(procCreate, uintptr(unsafe.Pointer(i)), uintptr(unsafe.Pointer(d)), uintptr(op), 0, uintptr(unsafe.Pointer(&h)))
	})
	if err != nil && h != 0 {
		procClose.Call(uintptr(h))
	}
	return h, err
}

// order runs a call of the form (system, operation, options).
func (h systemHandle) order(ctx context.Context, proc *windows.LazyProc, options []byte) (string, error) {
	o, err := text(string(options))
	if err != nil {
		return "", err
	}
	return operation(ctx, func(op operationHandle) error {
		return hcall(proc, uintptr(h), uintptr(op), uintptr(unsafe.Pointer(o)))
	})
}

// modify changes the machine.
func (h systemHandle) modify(ctx context.Context, change []byte) error {
	c, err := text(string(change))
	if err != nil {
		return err
	}
	_, err = operation(ctx, func(op operationHandle) error {
		return hcall(procModify, uintptr(h), uintptr(op), uintptr(unsafe.Pointer(c)), 0)
	})
	return err
}

// hcsEvent is HCS_EVENT of computedefs.h.
type hcsEvent struct {
	Type      uint32
	EventData *uint16
	Operation operationHandle
}

// The events that are told apart, HCS_EVENT_TYPE.
const (
	eventExited            = 0x1
	eventCrashInitiated    = 0x2
	eventServiceDisconnect = 0x02000000
)

// Callbacks of the system's have a number as their context, since a pointer of Go's
// must not be kept by it.
var callbacks = struct {
	sync.Mutex
	next uintptr
	by   map[uintptr]func(kind uint32, data string)
}{by: map[uintptr]func(uint32, string){}}

var callback = sync.OnceValue(func() uintptr {
	return syscall.NewCallback(func(event *hcsEvent, context uintptr) uintptr {
		callbacks.Lock()
		f := callbacks.by[context]
		callbacks.Unlock()
		if f != nil && event != nil {
			data := ""
			if event.EventData != nil {
				data = windows.UTF16PtrToString(event.EventData)
			}
			f(event.Type, data)
		}
		return 0
	})
})

// watch has f called with the machine's events, one at a time, on a thread of the
// system's, until forget is called.
func (h systemHandle) watch(f func(kind uint32, data string)) (forget func(), err error) {
	callbacks.Lock()
	callbacks.next++
	n := callbacks.next
	callbacks.by[n] = f
	callbacks.Unlock()
	forget = func() {
		callbacks.Lock()
		delete(callbacks.by, n)
		callbacks.Unlock()
	}
	if err := hcall(procSetCallback, uintptr(h), 0, n, callback()); err != nil {
		forget()
		return nil, err
	}
	return forget, nil
}

// serviceProperties asks the system itself something, which it refuses to who may
// not use it.
func serviceProperties() error {
	query, err := text(`{"PropertyTypes":["Basic"]}`)
	if err != nil {
		return err
	}
	var p *uint16
	err = hcall(procServiceProps, uintptr(unsafe.Pointer(query)), uintptr(unsafe.Pointer(&p)))
	return explain(err, take(p))
}

// closeWithin bounds the end of a machine that is freed.
const closeWithin = 10 * time.Second
