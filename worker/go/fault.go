package portreeve

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// A FaultCode is the kind of a fault; see portreeve-faults(7). It is an error, so that errors.Is can compare with it.
type FaultCode uint16

// The codes that this package knows. A later broker can send others.
const (
	Denied FaultCode = iota + 1
	NotRetained
	InUse
	NotLocal
	UnknownInterface
	Tentative
	Conflict
	QuotaExhausted
	Malformed
	Unsupported
	Busy
	Expired
	OS
	NotFound
	Invalid
)

var faultWords = [...]string{
	"", "denied", "not-retained", "in-use", "not-local", "unknown-interface", "tentative", "conflict", "quota", "malformed",
	"unsupported", "busy", "expired", "os", "not-found", "invalid",
}

// Error returns the word for the code, such as "in-use".
func (c FaultCode) Error() string {
	if c > 0 && int(c) < len(faultWords) {
		return faultWords[c]
	}
	return fmt.Sprintf("fault %d", uint16(c))
}

// A Fault is the broker's refusal of a request. The session continues.
type Fault struct {
	// Code is the kind of fault.
	Code FaultCode
	// Errno is the error number of the failed system call; 0 if none failed.
	Errno uint32
	// Subject is the object of the fault, such as the owner of an endpoint that is in use; may be empty.
	Subject string `wire:"128"`
	// Message says what failed, and its cause.
	Message string `wire:"512"`
	// Remedy says how to correct it; may be empty.
	Remedy string `wire:"512"`
}

// Error returns the message and the remedy, with every character escaped that could hide, move or end text.
func (f *Fault) Error() string {
	if f.Remedy == "" {
		return printable(f.Message)
	}
	return printable(f.Message + ". " + f.Remedy)
}

// Is reports whether the target is the fault's code.
func (f *Fault) Is(target error) bool {
	code, ok := target.(FaultCode)
	return ok && code == f.Code
}

var (
	// ErrClosed is the end of the session: the broker or this program has closed it. Received sockets remain usable.
	ErrClosed = errors.New("the session has ended. Sockets received from the broker remain usable")
	// ErrProtocol is a violation of the protocol by the broker. The session has ended.
	ErrProtocol = errors.New("the broker violated the protocol")
	// ErrDescriptorsLost means that this process had no free descriptors for the sockets of a reply. The session continues.
	ErrDescriptorsLost = errors.New("cannot receive the sockets of a reply: this process has no free file descriptors. Close " +
		"some or raise its limit of open files (RLIMIT_NOFILE), then repeat the request: it returns the same sockets")
)

func protocolError(format string, values ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, values...)...)
}

// An endedError is the reason that the broker gave for the end of the session.
type endedError struct{ fault *Fault }

func (e *endedError) Error() string   { return "the broker ended the session: " + e.fault.Error() }
func (e *endedError) Unwrap() error   { return e.fault }
func (e *endedError) Is(t error) bool { return t == ErrClosed }

func printable(text string) string {
	var out strings.Builder
	for _, c := range text {
		if unicode.IsPrint(c) {
			out.WriteRune(c)
		} else {
			fmt.Fprintf(&out, "\\u{%x}", c)
		}
	}
	return out.String()
}
