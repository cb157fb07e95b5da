//go:build linux

// Relay runs in the peer machine (see the package above) and answers the host
// on two vsock ports:
//
//	11 docker  the bytes of one connection to dockerd's socket, with half-close
//	12 shell   a script, up to the host's half-close; then what it printed and,
//	           as the last line, "exit N"
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os/exec"

	"github.com/mdlayher/vsock"
)

type halfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

func main() {
	go serve(12, shell)
	serve(11, docker)
}

func serve(port uint32, answer func(halfCloser)) {
	l, err := vsock.Listen(port, nil)
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go answer(conn.(*vsock.Conn))
	}
}

func docker(host halfCloser) {
	defer host.Close()
	conn, err := net.Dial("unix", "/run/docker.sock")
	if err != nil {
		return // dockerd does not listen yet: the host tries again
	}
	defer conn.Close()
	engine := conn.(*net.UnixConn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(engine, host)
		engine.CloseWrite()
	}()
	io.Copy(host, engine)
	host.CloseWrite()
	<-done
}

func shell(host halfCloser) {
	defer host.Close()
	script, err := io.ReadAll(host)
	if err != nil {
		return
	}
	cmd := exec.Command("/bin/sh", "-c", string(script))
	cmd.Stdout, cmd.Stderr = host, host
	if err := cmd.Run(); cmd.ProcessState == nil {
		fmt.Fprintln(host, err)
	}
	fmt.Fprintf(host, "\nexit %d\n", cmd.ProcessState.ExitCode())
}
