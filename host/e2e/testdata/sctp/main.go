// Command sctp speaks SCTP: "sctp listen PORT TEXT" says the text to whoever
// connects, "sctp ask ADDRESS:PORT" prints what it is told.
package main

import (
	"fmt"
	"log"
	"net/netip"
	"os"
	"syscall"
)

const protocol = 132

func main() {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, protocol)
	if err != nil {
		log.Fatal("socket: ", err)
	}
	if os.Args[1] == "ask" {
		to := netip.MustParseAddrPort(os.Args[2])
		if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			log.Fatal("connect: ", err)
		}
		buf := make([]byte, 100)
		n, err := syscall.Read(fd, buf)
		if err != nil {
			log.Fatal("read: ", err)
		}
		fmt.Printf("%s\n", buf[:n])
		return
	}
	at := netip.MustParseAddrPort("0.0.0.0:" + os.Args[2])
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(at.Port())}); err != nil {
		log.Fatal("bind: ", err)
	}
	if err := syscall.Listen(fd, 10); err != nil {
		log.Fatal("listen: ", err)
	}
	for {
		conn, _, err := syscall.Accept(fd)
		if err != nil {
			log.Fatal("accept: ", err)
		}
		syscall.Write(conn, []byte(os.Args[3]))
		syscall.Close(conn)
	}
}
