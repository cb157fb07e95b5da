// Package call is what the program git of the machine, cmd/berth-git, says to the
// engine: it wants to run git. One message on a SOCK_SEQPACKET socket holds the Call
// and, as descriptors, standard output and error; one byte comes back, the exit
// code. The end of the connection before that ends the call.
package call

import (
	"errors"
	"strconv"
	"strings"
)

// Socket is where the engine takes calls.
const Socket = "/run/berth/git.sock"

// MaxSize bounds a message, in bytes.
const MaxSize = 128 << 10

// Call is one run of git.
type Call struct {
	Dir  string // working directory; empty: any
	Args []string
	Env  []string
}

// ErrBroken is returned for bytes that are no Call.
var ErrBroken = errors.New("git: broken call")

// Encode returns c as one message. No string of a Call holds a zero byte, for the
// kernel would not have passed it.
func (c Call) Encode() []byte {
	b := strconv.AppendInt(nil, int64(len(c.Args)), 10)
	for _, s := range append(append([]string{c.Dir}, c.Args...), c.Env...) {
		b = append(append(b, 0), s...)
	}
	return b
}

// Decode reads what Encode made.
func Decode(b []byte) (Call, error) {
	head, rest, _ := strings.Cut(string(b), "\x00")
	n, err := strconv.Atoi(head)
	all := strings.Split(rest, "\x00")
	if err != nil || n < 0 || n > len(all)-1 {
		return Call{}, ErrBroken
	}
	return Call{Dir: all[0], Args: all[1 : n+1], Env: all[n+1:]}, nil
}
