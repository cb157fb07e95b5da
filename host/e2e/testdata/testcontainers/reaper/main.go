// Command reaper does in a container what Ryuk does for testcontainers, by Ryuk's
// protocol: whoever is connected sends lines of filters, each of which is
// acknowledged, and when nobody has been connected for a while, what matches any of
// them is removed, and the program ends.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/moby/moby/client"
)

func main() {
	log.SetOutput(os.Stdout)
	docker, err := client.New(client.FromEnv)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := docker.Ping(context.Background(), client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	log.Print("Started ", l.Addr()) // what the libraries wait for
	r := reaper{lines: map[string]bool{}}
	r.idle = time.AfterFunc(time.Minute, func() { os.Exit(r.reap(docker)) })
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		r.arrive()
		go r.listen(conn)
	}
}

type reaper struct {
	mu        sync.Mutex
	connected int
	lines     map[string]bool
	idle      *time.Timer
}

func (r *reaper) arrive() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected++
	r.idle.Stop()
}

func (r *reaper) listen(conn net.Conn) {
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		r.mu.Lock()
		r.lines[lines.Text()] = true
		r.mu.Unlock()
		fmt.Fprintln(conn, "ACK")
	}
	conn.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.connected--; r.connected == 0 {
		r.idle.Reset(5 * time.Second)
	}
}

// reap removes everything that matches and returns the exit code.
func (r *reaper) reap(docker *client.Client) (code int) {
	ctx := context.Background()
	failed := func(err error) {
		if err != nil {
			log.Print(err)
			code = 1
		}
	}
	for line := range r.lines {
		query, err := url.ParseQuery(line)
		failed(err)
		filters := client.Filters{}
		for key, values := range query {
			filters = filters.Add(key, values...)
		}
		containers, err := docker.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
		failed(err)
		for _, c := range containers.Items {
			_, err := docker.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			failed(err)
		}
		networks, err := docker.NetworkList(ctx, client.NetworkListOptions{Filters: filters})
		failed(err)
		for _, n := range networks.Items {
			_, err := docker.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{})
			failed(err)
		}
		volumes, err := docker.VolumeList(ctx, client.VolumeListOptions{Filters: filters})
		failed(err)
		for _, v := range volumes.Items {
			_, err := docker.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{Force: true})
			failed(err)
		}
	}
	return code
}
