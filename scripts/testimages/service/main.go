// Command service is the program of the test stack: an HTTP server that counts its
// visits in redis and writes each into postgres. It speaks just enough of both
// protocols, and its answers name where they come from.
//
//	GET /healthz   204 when both answer
//	GET /visit     counts: {"host", "greeting", "count", "rows"}
//
// REDIS_ADDR and POSTGRES_ADDR are host:port, POSTGRES_PASSWORD_FILE and
// GREETING_FILE are files, as secrets and configs are.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "check" { // a healthcheck in an image without a shell
		resp, err := http.Get(os.Args[2])
		if err != nil || resp.StatusCode >= 300 {
			fmt.Fprintln(os.Stderr, "unhealthy:", err)
			os.Exit(1)
		}
		return
	}
	log.SetFlags(0)
	http.HandleFunc("GET /healthz", answer(func() (any, error) {
		if _, err := redis("PING"); err != nil {
			return nil, err
		}
		_, err := postgres("CREATE TABLE IF NOT EXISTS visits (at timestamptz DEFAULT now())")
		return nil, err
	}))
	http.HandleFunc("GET /visit", answer(visit))
	go func() {
		log.Print("listening on :8080")
		log.Fatal(http.ListenAndServe(":8080", nil))
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	log.Printf("stopped by %v", <-signals)
}

func answer(f func() (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f()
		switch {
		case err != nil:
			log.Printf("%s: %v", r.URL.Path, err)
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case v == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			log.Printf("%s: %v", r.URL.Path, v)
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(v)
		}
	}
}

func visit() (any, error) {
	count, err := redis("INCR", "visits")
	if err != nil {
		return nil, err
	}
	rows, err := postgres("INSERT INTO visits DEFAULT VALUES; SELECT count(*) FROM visits")
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	greeting, _ := os.ReadFile(os.Getenv("GREETING_FILE"))
	return map[string]any{"host": host, "greeting": strings.TrimSpace(string(greeting)), "count": count, "rows": rows}, nil
}

func dial(variable string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", os.Getenv(variable), 10*time.Second)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(30 * time.Second))
}

// redis runs a command whose answer is one line.
func redis(args ...string) (string, error) {
	conn, err := dial("REDIS_ADDR")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	fmt.Fprintf(conn, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(arg), arg)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || line == "" || line[0] == '-' {
		return "", fmt.Errorf("redis: %q, %w", line, err)
	}
	return strings.TrimSpace(line[1:]), nil
}

// postgres runs statements by the simple query protocol and returns the last
// row's first column.
func postgres(sql string) (string, error) {
	conn, err := dial("POSTGRES_ADDR")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	send := func(kind byte, body string) {
		message := binary.BigEndian.AppendUint32(nil, uint32(len(body)+4))
		if kind != 0 {
			message = append([]byte{kind}, message...)
		}
		conn.Write(append(message, body...))
	}
	send(0, "\x00\x03\x00\x00user\x00postgres\x00\x00")
	r := bufio.NewReader(conn)
	var value string
	for asked := false; ; {
		kind, err := r.ReadByte()
		if err != nil {
			return "", fmt.Errorf("postgres: %w", err)
		}
		var size uint32
		if err := binary.Read(r, binary.BigEndian, &size); err != nil || size < 4 {
			return "", fmt.Errorf("postgres: %w", err)
		}
		body := make([]byte, size-4)
		if _, err := io.ReadFull(r, body); err != nil {
			return "", fmt.Errorf("postgres: %w", err)
		}
		switch {
		case kind == 'E':
			return "", errors.New("postgres: " + strconv.Quote(string(body)))
		case kind == 'R' && binary.BigEndian.Uint32(body) == 3: // a password in clear text
			password, err := os.ReadFile(os.Getenv("POSTGRES_PASSWORD_FILE"))
			if err != nil {
				return "", err
			}
			send('p', strings.TrimSpace(string(password))+"\x00")
		case kind == 'D' && len(body) > 6:
			value = string(body[6:])
		case kind == 'Z' && asked:
			return value, nil
		case kind == 'Z':
			asked = true
			send('Q', sql+"\x00")
		}
	}
}
