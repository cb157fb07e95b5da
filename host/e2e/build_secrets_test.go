//go:build linux

package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh/agent"
)

// sshAgent serves an agent that has one key, with that comment, and returns its
// socket.
func sshAgent(t testing.TB, comment string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: key, Comment: comment}); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ag-") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); os.RemoveAll(dir) })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = agent.ServeAgent(keys, conn)
			}()
		}
	}()
	return l.Addr().String()
}

// askAgent is a program that prints what the agent's answer to a request for its
// keys begins with, and whether a word is in it:
// https://datatracker.ietf.org/doc/html/draft-miller-ssh-agent
const askAgent = `package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		fmt.Println("no agent:", err)
		return
	}
	conn.Write([]byte{0, 0, 0, 1, 11})
	size := make([]byte, 4)
	_, err = io.ReadFull(conn, size)
	answer := make([]byte, binary.BigEndian.Uint32(size))
	_, err2 := io.ReadFull(conn, answer)
	fmt.Println(answer[:5], bytes.Contains(answer, []byte(os.Args[1])), err, err2)
}
`

const secretsDockerfile = `FROM hello AS made
COPY program /ask
RUN --mount=type=ssh /ask key-of-the-host > /agent
RUN --mount=type=ssh,id=other,target=/agent.sock,mode=0666 SSH_AUTH_SOCK=/agent.sock /ask key-of-another >> /agent
RUN /ask x >> /agent 2>&1; true
RUN --mount=type=secret,id=file,uid=7,mode=0440 cp -p /run/secrets/file /file && stat -c '%u %a' /file > /mode
RUN --mount=type=secret,id=env,env=WORD echo "$WORD" > /env
RUN --mount=type=secret,id=none cat /run/secrets/none 2>&1 | tail -n 1 > /none
RUN ls /run/secrets > /left 2>&1; echo "$WORD" >> /left
FROM scratch
COPY --from=made /agent /file /mode /env /none /left /
`

// secretsWant are the files of secretsDockerfile: 12 is the answer to a request for
// keys, of which there is one.
var secretsWant = map[string]string{
	"agent": "[12 0 0 0 1] true <nil> <nil>\n[12 0 0 0 1] true <nil> <nil>\nno agent: dial unix: missing address\n",
	"file":  "of a file\n", "mode": "7 440\n", "env": "of the environment\n",
	"none": "cat: can't open '/run/secrets/none': No such file or directory\n",
	"left": "ls: /run/secrets: No such file or directory\n\n",
}

// TestBuildSecrets: steps get the host's secrets and reach its ssh agent, and only
// those that ask for it.
func TestBuildSecrets(t *testing.T) {
	h := machine(t)
	program := buildProgram(t, askAgent)
	host, other := sshAgent(t, "key-of-the-host"), sshAgent(t, "key-of-another")
	for _, c := range append(h.buildxes(t), h.composeBerth()) {
		t.Run(c.name, func(t *testing.T) {
			dir := buildContext(t, map[string]string{"Dockerfile": secretsDockerfile, "file": "of a file\n", "compose.yaml": `name: e2e-secrets
services:
  made:
    build:
      context: .
      secrets: [file, env]
      ssh: [default, "other=` + other + `"]
secrets: {file: {file: ./file}, env: {environment: SECRET_ENV}}
`})
			if err := os.Link(program, filepath.Join(dir, "program")); err != nil {
				t.Fatal(err)
			}
			// Compose's bake asks before it reads a socket outside of the project.
			c.env = append(c.env, "SSH_AUTH_SOCK="+host, "SECRET_ENV=of the environment", "BUILDX_BAKE_ENTITLEMENTS_FS=0")
			out := t.TempDir()
			if c.name == "berth compose" {
				compose(c, dir).ok(t, "build", "--no-cache", "--ssh", "default")
				h.berth().ok(t, "create", "--name", "e2e-secrets", "e2e-secrets-made", "none")
				for name := range secretsWant {
					h.berth().ok(t, "cp", "e2e-secrets:/"+name, out)
				}
				h.berth().ok(t, "rm", "e2e-secrets")
			} else {
				build := []string{"buildx", "build", "--no-cache", "-o", out, "--secret", "id=file,src=" + filepath.Join(dir, "file"),
					"--secret", "id=env,env=SECRET_ENV", "--ssh", "default", "--ssh", "other=" + other, dir}
				c.ok(t, build...)
				bare := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nRUN --mount=type=ssh,required true\n"})
				c.fails(t, "unset ssh forward key default", "buildx", "build", bare)
			}
			for name, want := range secretsWant {
				if got := mustRead(t, filepath.Join(out, name)); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			if r := h.berth().exec("history", "--no-trunc", "e2e-secrets-made"); strings.Contains(r.out, "of the environment") {
				t.Errorf("the image tells a secret: %s", r)
			}
		})
	}
}
