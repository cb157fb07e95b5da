//go:build linux

package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// hostName is the host, for what runs in the VM.
const hostName = "host.docker.internal"

// gitHost is a server of git repositories on the host, by every protocol there is.
type gitHost struct {
	dir   string
	token string // what clients by HTTP must know; empty: nothing
}

// git runs git in a folder and returns what it prints.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "protocol.file.allow=always", "-C", dir}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@test", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@test")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// repository makes a bare repository NAME.git with one commit on main, and returns
// its path and the commit. more changes the working tree before.
func (g *gitHost) repository(t testing.TB, name string, files map[string]string, more func(dir string)) (bare, commit string) {
	t.Helper()
	dir := buildContext(t, files)
	git(t, dir, "init", "-q", "-b", "main")
	if more != nil {
		more(dir)
	}
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "first")
	bare = filepath.Join(g.dir, name+".git")
	git(t, g.dir, "clone", "-q", "--bare", dir, bare)
	return bare, git(t, dir, "rev-parse", "HEAD")
}

// web serves the repositories by HTTP and returns the address, as the VM sees it.
func (g *gitHost) web(t testing.TB) string {
	t.Helper()
	s := httptest.NewServer(g.handler(t))
	t.Cleanup(s.Close)
	return "http://" + forVM(t, s.Listener.Addr())
}

func (g *gitHost) handler(t testing.TB) http.Handler {
	t.Helper()
	backend := &cgi.Handler{Path: filepath.Join(git(t, "/", "--exec-path"), "git-http-backend"), Dir: g.dir,
		Env: []string{"GIT_PROJECT_ROOT=" + g.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != g.token {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	})
}

// forVM is an address of the host's loopback as the VM reaches it.
func forVM(t testing.TB, a net.Addr) string {
	t.Helper()
	_, port, err := net.SplitHostPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(hostName, port)
}

// listenFor serves each connection to a port of the loopback until the test's end.
func listenFor(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return forVM(t, l.Addr())
}

// daemon serves the repositories by git's own protocol.
func (g *gitHost) daemon(t testing.TB) string {
	t.Helper()
	return "git://" + listenFor(t, func(conn net.Conn) {
		cmd := exec.Command("git", "daemon", "--inetd", "--export-all", "--base-path="+g.dir, g.dir)
		cmd.Stdin, cmd.Stdout = conn, conn
		_ = cmd.Run()
	})
}

// ssh serves the repositories to who has key.
func (g *gitHost) ssh(t testing.TB, key ssh.PublicKey) string {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if string(k.Marshal()) != string(key.Marshal()) {
			return nil, fmt.Errorf("unknown key")
		}
		return nil, nil
	}}
	config.AddHostKey(signer)
	return "ssh://git@" + listenFor(t, func(conn net.Conn) {
		_, channels, requests, err := ssh.NewServerConn(conn, config)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(requests)
		for ch := range channels {
			g.session(ch)
		}
	})
}

// session runs the command of one session: git-upload-pack of a repository.
func (g *gitHost) session(ch ssh.NewChannel) {
	channel, requests, err := ch.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	for r := range requests {
		if r.Type != "exec" || len(r.Payload) < 4 {
			_ = r.Reply(r.Type == "env", nil)
			continue
		}
		_ = r.Reply(true, nil)
		name, ok := strings.CutPrefix(string(r.Payload[4:]), "git-upload-pack ")
		cmd := exec.Command("git", "upload-pack", filepath.Join(g.dir, filepath.Clean("/"+strings.Trim(name, "'"))))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = channel, channel, channel.Stderr()
		status := []byte{0, 0, 0, 0}
		if !ok || cmd.Run() != nil {
			status[3] = 1
		}
		_, _ = channel.SendRequest("exit-status", false, status)
		return
	}
}

// remoteBuild asks the engine's API for a build and returns the answer.
func (h *home) remoteBuild(t testing.TB, query string) string {
	t.Helper()
	return dockerSocket(t, h, "POST /v1.44/build?"+query+" HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

// TestBuildGitContext: a repository is a build's context, by every way to build.
func TestBuildGitContext(t *testing.T) {
	h := machine(t)
	g := &gitHost{dir: t.TempDir()}
	bare, _ := g.repository(t, "r", map[string]string{
		"Dockerfile": "FROM hello\nCOPY f /f\nCMD [\"cat\", \"/f\"]\n", "f": "one\n",
		"sub/Dockerfile": "FROM hello\nCMD [\"echo\", \"sub\"]\n",
	}, nil)
	git(t, bare, "tag", "v1")
	web, own := g.web(t), g.daemon(t)

	b := h.builders(t)
	b[0].ok(t, "build", "-q", "-t", "e2e-git", own+"/r.git")
	if got := b[0].ok(t, "run", "--rm", "e2e-git"); got != "one" {
		t.Errorf("the image prints %q", got)
	}
	b[1].ok(t, "build", "-q", "-t", "e2e-git-sub", web+"/r.git#v1:sub")
	if got := b[1].ok(t, "run", "--rm", "e2e-git-sub"); got != "sub" {
		t.Errorf("the folder's image prints %q", got)
	}
	if answer := h.remoteBuild(t, "t=e2e-git-api&remote="+web+"/r.git%23main"); !strings.Contains(answer, "Successfully tagged e2e-git-api:latest") {
		t.Errorf("the API says:\n%s", answer)
	}
	if got := b[0].ok(t, "run", "--rm", "e2e-git-api"); got != "one" {
		t.Errorf("the image made by the API prints %q", got)
	}
	// A new commit is seen, and only it.
	work := t.TempDir()
	git(t, work, "clone", "-q", bare, "w")
	if err := os.WriteFile(filepath.Join(work, "w", "f"), []byte("two\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	git(t, work+"/w", "commit", "-q", "-a", "-m", "second")
	git(t, work+"/w", "push", "-q", "origin", "HEAD:main")
	for ref, want := range map[string]string{"#main": "two", "#v1": "one"} {
		b[0].ok(t, "build", "-q", "-t", "e2e-git", web+"/r.git"+ref)
		if got := b[0].ok(t, "run", "--rm", "e2e-git"); got != want {
			t.Errorf("%s after a commit: the image prints %q, want %q", ref, got, want)
		}
	}
	b[0].fails(t, "does not contain ref nothere", "build", web+"/r.git#nothere")
	b[0].fails(t, "not found", "build", web+"/nothere.git")
	h.noSteps(t)
}

// TestBuildGitLocalhost: the loopback in a build's URLs is the host's, as it is when
// an image is pulled.
func TestBuildGitLocalhost(t *testing.T) {
	h := machine(t)
	g := &gitHost{dir: t.TempDir()}
	g.repository(t, "r", map[string]string{"Dockerfile": "FROM hello\nCOPY f /f\nCMD [\"cat\", \"/f\"]\n", "f": "near\n"}, nil)
	six := httptest.NewUnstartedServer(g.handler(t))
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	six.Listener.Close()
	six.Listener = l
	six.Start()
	t.Cleanup(six.Close)
	at := func(url, name string) string { return strings.Replace(url, hostName, name, 1) }
	_, port6, _ := net.SplitHostPort(l.Addr().String())
	web := g.web(t)
	b := h.berth()
	for _, url := range []string{
		at(web, "localhost"), at(web, "127.0.0.1"), at(g.daemon(t), "localhost"), "http://localhost:" + port6, "http://[::1]:" + port6,
		at(web, "git.localhost"), at(g.daemon(t), "git.localhost"),
	} {
		b.ok(t, "build", "-q", "-t", "e2e-git-near", url+"/r.git")
		if got := b.ok(t, "run", "--rm", "e2e-git-near"); got != "near" {
			t.Errorf("%s: the image prints %q", url, got)
		}
	}
	b.ok(t, "build", "-q", "-t", "e2e-git-near", buildContext(t, map[string]string{"Dockerfile": fmt.Sprintf(
		"FROM hello\nADD %[1]s/r.git /r\nADD %[1]s/r.git/HEAD /head\nADD %[2]s/r.git/HEAD /two\nADD %[3]s/r.git/HEAD /three\nCMD cat /r/f /head /two /three\n",
		at(web, "localhost"), at(web, "git.localhost"), "http://[::1]:"+port6)}))
	if got := b.ok(t, "run", "--rm", "e2e-git-near"); got != "near"+strings.Repeat("\nref: refs/heads/main", 3) {
		t.Errorf("the image of ADDs prints %q", got)
	}
	b.fails(t, "unable to access", "build", "http://localhost:1/r.git")
	// A step's loopback is its own, and has nobody.
	b.ok(t, "build", "-q", "--no-cache", buildContext(t, map[string]string{"Dockerfile": "FROM hello\nRUN ! wget -q -O- " + at(web, "127.0.0.1") + "/r.git/HEAD\n"}))
	h.noSteps(t)
}

// TestPrivateAuthority: what the host's own authority has vouched for is trusted by
// git, by ADD and by a pull.
func TestPrivateAuthority(t *testing.T) {
	h := ownHome(t)
	g := &gitHost{dir: t.TempDir()}
	g.repository(t, "r", map[string]string{"Dockerfile": "FROM hello\nCOPY f /f\nCMD [\"cat\", \"/f\"]\n", "f": "vouched for\n"}, nil)
	handler := g.handler(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/") {
			http.Error(w, "the registry's door", http.StatusTeapot)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	authority, certificate := newAuthority(t, hostName, "localhost")
	var shown atomic.Pointer[tls.Certificate]
	shown.Store(&certificate)
	s.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown.Load(), nil }}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	bundle := filepath.Join(t.TempDir(), "authority.pem")
	writeFile(t, bundle, authority)

	h.bootWith(t, "ca-bundle: "+bundle+"\n")
	b := h.berth()
	for _, name := range []string{hostName, "localhost"} {
		url := "https://" + name + ":" + port + "/r.git"
		b.ok(t, "build", "-q", "-t", "vouched", url)
		if got := b.ok(t, "run", "--rm", "vouched"); got != "vouched for" {
			t.Errorf("%s: the image prints %q", name, got)
		}
		b.ok(t, "build", "-q", "--no-cache", buildContext(t, map[string]string{"Dockerfile": "FROM hello\nADD " + url + "/HEAD /head\nADD " + url + " /r\nRUN grep main /head && test -f /r/f\n"}))
		b.fails(t, "teapot", "pull", name+":"+port+"/r:1")
	}
	// Another's certificate is not taken.
	_, other := newAuthority(t, hostName, "localhost")
	shown.Store(&other)
	b.fails(t, "certificate", "build", "--no-cache", "https://localhost:"+port+"/r.git#refs/heads/main")
}

// newAuthority makes an authority and a certificate of its for names.
func newAuthority(t testing.TB, names ...string) (authority string, certificate tls.Certificate) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the house's authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: root.Subject, NotAfter: root.NotAfter, DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, root, root, public, private)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: private}
}

// TestBuildAddGit: ADD of a repository, with all its options, and of one whose
// parts are elsewhere.
func TestBuildAddGit(t *testing.T) {
	h := machine(t)
	g := &gitHost{dir: t.TempDir()}
	web, own := g.web(t), g.daemon(t)
	_, commit := g.repository(t, "part", map[string]string{"f": "part\n", "d/e": "deep\n"}, nil)
	g.repository(t, "whole", map[string]string{"f": "whole\n"}, func(dir string) {
		git(t, dir, "submodule", "add", "-q", g.dir+"/part.git", "module")
		git(t, dir, "config", "-f", ".gitmodules", "submodule.module.url", "../part.git")
	})
	dir := buildContext(t, map[string]string{"Dockerfile": fmt.Sprintf(`FROM hello
ADD %[1]s/part.git#main:d /deep/
ADD --keep-git-dir=true %[2]s/part.git#main /kept/
ADD --checksum=%[3]s %[1]s/part.git#main /summed/
ADD %[1]s/part.git#%[3]s /commit/
ADD %[1]s/whole.git /whole/
CMD cat /deep/e /kept/f /summed/f /commit/f /whole/f /whole/module/f; cat /kept/.git/HEAD; ls -d /summed/.git; stat -c '%%u %%a' /summed/f
`, web, own, commit)})
	b := h.berth()
	b.ok(t, "build", "-q", "-t", "e2e-add-git", dir)
	r := b.exec("run", "--rm", "e2e-add-git")
	want := "deep\npart\npart\npart\nwhole\npart\n" + commit + "\n0 644\n"
	if r.out != want || !strings.Contains(r.err, "/summed/.git: No such file") {
		t.Errorf("%s\nwant\n%s", r, want)
	}
	other := strings.Repeat("0", 40)
	bad := buildContext(t, map[string]string{"Dockerfile": fmt.Sprintf("FROM hello\nADD --checksum=%s %s/part.git#main /x/\n", other, web)})
	b.fails(t, "expected checksum to match", "build", bad)
}

// TestBuildGitSecret: a repository that is not for everybody is for who has the
// secret or the key, and neither gets into the image.
func TestBuildGitSecret(t *testing.T) {
	h := machine(t)
	g := &gitHost{dir: t.TempDir(), token: "t0ken"}
	g.repository(t, "private", map[string]string{"Dockerfile": "FROM hello\nCOPY . /c/\nCMD [\"cat\", \"/c/f\"]\n", "f": "private\n"}, nil)
	web := g.web(t)
	b := h.berth()
	b.env = append(b.env, "GIT_AUTH_TOKEN="+g.token)
	b.fails(t, "could not read", "build", web+"/private.git")
	b.ok(t, "build", "-q", "-t", "e2e-git-private", "--secret", "id=GIT_AUTH_TOKEN", web+"/private.git")
	if got := b.ok(t, "run", "--rm", "e2e-git-private"); got != "private" {
		t.Errorf("the image prints %q", got)
	}
	if got := b.ok(t, "history", "--no-trunc", "e2e-git-private"); strings.Contains(got, g.token) {
		t.Errorf("the token is in the image:\n%s", got)
	}

	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(keys, conn) }()
		}
	}()
	url := g.ssh(t, key) + "/private.git#main"
	b.ok(t, "build", "-q", "-t", "e2e-git-ssh", "--ssh", "default="+socket, url)
	if got := b.ok(t, "run", "--rm", "e2e-git-ssh"); got != "private" {
		t.Errorf("the image made by ssh prints %q", got)
	}
	if err := keys.RemoveAll(); err != nil {
		t.Fatal(err)
	}
	b.fails(t, "permission denied", "build", "--no-cache", "--ssh", "default="+socket, strings.Replace(url, "#main", "#refs/heads/main", 1))
}

// TestBuildHostileGit: neither a URL nor a repository makes git run a program or
// show a file of the machine's.
func TestBuildHostileGit(t *testing.T) {
	h := machine(t)
	g := &gitHost{dir: t.TempDir()}
	web := g.web(t)
	const mark = "/tmp/berth-e2e-hostile"
	for _, remote := range []string{
		"ext::sh%20-c%20touch%25%20" + mark + ".git",
		"file:///var/lib/berth/x.git",
		"/var/lib/berth/x.git",
		"ssh://-oProxyCommand=touch$IFS" + mark + "/r.git",
		"git@-oProxyCommand=touch%20" + mark + ":r.git",
		web + "/r.git%23--upload-pack=touch%20" + mark,
		"https://user@-oProxyCommand=x/r.git",
	} {
		if answer := h.remoteBuild(t, "remote="+remote); !strings.Contains(answer, `"error"`) && !strings.Contains(answer, `{"message"`) {
			t.Errorf("%s: no error in\n%s", remote, answer)
		}
	}
	_, commit := g.repository(t, "plain", map[string]string{"f": "plain\n"}, nil)
	modules := []struct{ name, module, want string }{
		{"ext", "\turl = ext::sh -c touch% " + mark + "\n", "transport 'ext' not allowed"},
		{"update", "\turl = ../plain.git\n\tupdate = !touch " + mark + "\n", "invalid value"},
		{"file", "\turl = file:///var/lib/berth\n", "transport 'file' not allowed"},
		{"option", "\turl = --upload-pack=touch " + mark + "\n", "submodule"},
		{"ssh", "\turl = ssh://-oProxyCommand=touch$IFS" + mark + "/x\n", "strange hostname"},
		{"up", "\tpath = ../../../x\n\turl = ../plain.git\n", "submodule"},
	}
	if os.Getenv("BERTH_FULL") != "1" {
		modules = modules[:2]
	}
	for _, m := range modules {
		t.Run(m.name, func(t *testing.T) {
			g.repository(t, m.name, map[string]string{"Dockerfile": "FROM hello\n", ".gitmodules": "[submodule \"m\"]\n\tpath = m\n" + m.module},
				func(dir string) {
					git(t, dir, "update-index", "--add", "--cacheinfo", "160000,"+commit+",m")
					if err := os.Mkdir(filepath.Join(dir, "m"), 0o755); err != nil {
						t.Fatal(err)
					}
				})
			h.berth().fails(t, m.want, "build", "-q", web+"/"+m.name+".git")
		})
	}
	t.Run("link", func(t *testing.T) {
		g.repository(t, "link", map[string]string{"Dockerfile": "FROM hello\nCOPY passwd /x\n"}, func(dir string) {
			for name, target := range map[string]string{"passwd": "/etc/passwd", "out": "/etc"} {
				if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		})
		h.berth().fails(t, "not found", "build", web+"/link.git")
		h.berth().fails(t, "non-directory", "build", web+"/link.git#main:out")
	})
	if got := h.berth().ok(t, "ssh", "--", "ls -d "+mark+"* 2>/dev/null; true"); got != "" {
		t.Errorf("a program ran: %s", got)
	}
	// What git itself could do, had it been taken over.
	look := `git -c 'alias.look=!ls / /var/lib /run /tmp /root; grep -c . /proc/mounts; grep -E "CapEff|CapBnd|NoNewPrivs" /proc/self/status; ls /sys/class/net; touch /x; ls /proc | grep -c "^[0-9]"' look 2>&1`
	out := h.berth().ok(t, "ssh", "--", look)
	for _, want := range []string{"CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "\nlo\n", "Read-only file system"} {
		if !strings.Contains(out, want) {
			t.Errorf("in git's container there is no %q:\n%s", want, out)
		}
	}
	for _, never := range []string{"berth", "docker", "eth0"} {
		if strings.Contains(out, never) {
			t.Errorf("git's container shows %q:\n%s", never, out)
		}
	}
}

// TestBuildRemote: a context that is an archive, or just a Dockerfile, somewhere.
func TestBuildRemote(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nCOPY f /f\nCMD [\"cat\", \"/f\"]\n", "f": "archive\n"})
	archive, err := exec.Command("tar", "-czC", dir, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/context.tar.gz":
			_, _ = w.Write(archive)
		case "/Containerfile":
			_, _ = io.WriteString(w, "FROM hello\nCMD [\"echo\", \"just a file\"]\n")
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	url := "http://localhost:" + port
	for path, want := range map[string]string{"/context.tar.gz": "archive", "/Containerfile": "just a file"} {
		kit := h.builders(t)[1]
		kit.ok(t, "build", "-q", "-t", "e2e-remote", url+path)
		if got := kit.ok(t, "run", "--rm", "e2e-remote"); got != want {
			t.Errorf("%s: the image prints %q", path, got)
		}
		if answer := h.remoteBuild(t, "t=e2e-remote-api&remote="+url+path); !strings.Contains(answer, "Successfully tagged e2e-remote-api:latest") {
			t.Errorf("%s: the API says:\n%s", path, answer)
		}
		if got := kit.ok(t, "run", "--rm", "e2e-remote-api"); got != want {
			t.Errorf("%s: the image made by the API prints %q", path, got)
		}
	}
	if answer := h.remoteBuild(t, "remote="+url+"/nothere"); !strings.Contains(answer, "404") {
		t.Errorf("a context that is not there:\n%s", answer)
	}
}
