package muxed

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"time"
)

// Magic begins each message of the handshake. No frame can begin with it.
const Magic = "\xffberth-streams-1\n"

const (
	nonceSize = 16
	// sayAgain is how often the guest repeats its first message: the host may still
	// take it for a part of an older conversation.
	sayAgain = 100 * time.Millisecond
)

type nonce [nonceSize]byte

// Interrupt ends the session of a guest that does not know yet that its host is
// another one: the machine was saved and goes on. Whatever frame the guest is in the
// middle of is filled up, and no frame begins with what follows.
func Interrupt(pipe io.Writer) error {
	_, err := pipe.Write(bytes.Repeat([]byte(Magic[:1]), maxData+headerSize))
	return err
}

func newNonce(random io.Reader) (n nonce, err error) {
	_, err = io.ReadFull(random, n[:])
	return n, err
}

func message(kind byte, nonces ...nonce) []byte {
	b := append([]byte(Magic), kind)
	for _, n := range nonces {
		b = append(b, n[:]...)
	}
	return b
}

// await drops what r holds up to and including prefix.
func await(r *bufio.Reader, prefix []byte) error {
	for {
		head, err := r.Peek(len(prefix))
		if err != nil {
			return err
		}
		if bytes.Equal(head, prefix) {
			_, err = r.Discard(len(prefix))
			return err
		}
		// Whatever begins with the prefix begins with its first byte.
		skip := 1 + bytes.IndexByte(head[1:], prefix[0])
		if skip == 0 {
			skip = len(head)
		}
		if _, err := r.Discard(skip); err != nil {
			return err
		}
	}
}

// Greet makes the guest's handshake. Frames follow in r, which reads from pipe. It
// ends when ctx does, but then leaves a goroutine that reads, until pipe is closed.
// random is a source of random bytes: crypto/rand is too big for PID 1.
func Greet(ctx context.Context, r *bufio.Reader, pipe io.Writer, random io.Reader) error {
	mine, err := newNonce(random)
	if err != nil {
		return err
	}
	var answer nonce
	done := make(chan error, 1)
	go func() {
		err := await(r, message('A', mine))
		if err == nil {
			_, err = io.ReadFull(r, answer[:])
		}
		done <- err
	}()
	for {
		if _, err := pipe.Write(message('S', mine)); err != nil {
			return fmt.Errorf("greet the host: %w", err)
		}
		select {
		case err := <-done:
			if err == nil {
				_, err = pipe.Write(message('G', answer))
			}
			if err != nil {
				return fmt.Errorf("greet the host: %w", err)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the host does not answer: %w", ctx.Err())
		case <-time.After(sayAgain):
		}
	}
}

// Answer makes the host's handshake, whenever a guest begins one. Frames follow in
// r, which reads from pipe. random is a source of random bytes.
func Answer(r *bufio.Reader, pipe io.Writer, random io.Reader) error {
	var theirs, mine nonce
	greeted := false
	for {
		if err := await(r, []byte(Magic)); err != nil {
			return err
		}
		kind, err := r.ReadByte()
		if err != nil {
			return err
		}
		var got nonce
		switch kind {
		case 'S', 'G':
			head, err := r.Peek(nonceSize) // it may be no message after all
			if err != nil {
				return err
			}
			copy(got[:], head)
		default:
			continue
		}
		switch {
		case kind == 'G' && greeted && got == mine:
			_, err := r.Discard(nonceSize)
			return err
		case kind == 'S' && (!greeted || got != theirs):
			greeted, theirs = true, got
			if mine, err = newNonce(random); err != nil {
				return err
			}
			if _, err := pipe.Write(message('A', theirs, mine)); err != nil {
				return err
			}
		}
	}
}
