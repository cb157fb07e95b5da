package container

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// creatorConfig is what a second process is to create. It is the engine of these
// tests, and this test its PID 1.
type creatorConfig struct {
	ID, StateDir, Cgroup string
	Spec                 *specs.Spec
	Pool                 bool
	Die                  string // when to kill itself: "started", "created" or "running"
}

const creatorEnv = "BERTH_TEST_CREATOR"

// creatorMain is the second process.
func creatorMain(encoded string) {
	var cc creatorConfig
	if err := json.Unmarshal([]byte(encoded), &cc); err != nil {
		panic(err)
	}
	die := func(when string) {
		if cc.Die == when {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	cfg := Config{ID: cc.ID, StateDir: cc.StateDir, Spec: cc.Spec, CgroupPath: cc.Cgroup, ExecPath: execPath(),
		Stdout: os.Stdout, Stderr: os.Stderr, CloneParent: true,
		Started: func(int, *os.File) error { die("started"); return nil }}
	if cc.Pool {
		pool, err := NewPool(PoolConfig{Parent: filepath.Dir(cc.Cgroup), ExecPath: cfg.ExecPath, CloneParent: true})
		if err != nil {
			panic(err)
		}
		pool.fill()
		cfg.Pool = pool
	}
	c, err := Create(bg, cfg)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	die("created")
	if err := c.Start(bg); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p, err := c.Exec(bg, ExecConfig{ExecPath: cfg.ExecPath, CloneParent: true, Stdout: os.Stdout,
		Process: &specs.Process{Args: []string{"sh", "-c", "echo exec; exit 3"}, Cwd: "/", Env: []string{"PATH=/bin"}}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("pids", c.PID(), p.PID())
	die("running")
}

// TestCreatorKilled kills the creator at different moments. As long as the
// container has not been started it dies too; from then on it lives, is this
// process's child, and another program finds it.
func TestCreatorKilled(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	for _, pool := range []bool{false, true} {
		for _, when := range []string{"started", "created", "running"} {
			t.Run(fmt.Sprintf("%s pool=%v", when, pool), func(t *testing.T) {
				cfg := testConfig(t, testSpec(root, "sh", "-c", "sleep 1000; true"))
				if pool && cfg.CgroupPath == "" {
					t.Skip("needs a cgroup v2")
				}
				arg, err := json.Marshal(creatorConfig{ID: cfg.ID, StateDir: cfg.StateDir, Cgroup: cfg.CgroupPath, Spec: cfg.Spec, Pool: pool, Die: when})
				if err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command("/proc/self/exe")
				cmd.Env = append(os.Environ(), creatorEnv+"="+string(arg))
				var out bytes.Buffer
				file, err := os.CreateTemp(t.TempDir(), "out")
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				cmd.Stdout, cmd.Stderr = file, file // not a pipe: the container keeps it open
				if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != -1 {
					b, _ := os.ReadFile(file.Name())
					t.Fatalf("the creator was not killed: %v %s", err, b)
				}
				if b, err := os.ReadFile(file.Name()); err == nil {
					out.Write(b)
				}
				c, err := Load(cfg.StateDir, cfg.ID)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				checkOrphan(t, c, when, out.String())
				if err := c.Delete(testContext(t)); err != nil {
					t.Fatal(err)
				}
				for { // this is PID 1 to them all
					var ws unix.WaitStatus
					if _, err := unix.Wait4(-1, &ws, 0, nil); err != nil {
						break
					}
				}
				nothingLeft(t, cfg)
			})
		}
	}
}

func checkOrphan(t *testing.T, c *Container, when, out string) {
	t.Helper()
	if when != "running" {
		for range 1000 {
			if s, err := c.Status(); err != nil || s == Stopped {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Error("a container that nobody can start is left")
		return
	}
	if s, err := c.Status(); err != nil || s != Running {
		t.Errorf("status %v %v", s, err)
	}
	var first, second int
	line := out[strings.Index(out, "pids"):]
	if _, err := fmt.Sscanf(line, "pids %d %d", &first, &second); err != nil || first != c.PID() {
		t.Fatalf("%q %v, the container's process is %d", out, err, c.PID())
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(first) + "/status")
	if err != nil || !strings.Contains(string(status), "PPid:\t"+strconv.Itoa(os.Getpid())+"\n") {
		t.Errorf("the first process's parent is not this one: %s %v", status, err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(second, &ws, 0, nil); err != nil || ws.ExitStatus() != 3 {
		t.Errorf("the second process is not this one's to reap: %v %v", ws, err)
	}
	if got, err := execIn(t, c, "hostname", nil); err != nil || got != "box" {
		t.Errorf("exec after the creator's death: %q %v", got, err)
	}
}

// TestMany creates, runs and deletes containers at once.
func TestMany(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	stateDir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			cfg := testConfig(t, testSpec(root, "sh", "-c", "sleep 1000"))
			cfg.ID, cfg.StateDir = "many"+strconv.Itoa(i), stateDir
			if cfg.CgroupPath != "" {
				cfg.CgroupPath += "-" + cfg.ID
			}
			cfg.Spec.Hostname = cfg.ID
			c, err := Create(testContext(t), cfg)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if err := c.Start(testContext(t)); err != nil {
				t.Error(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			p, err := c.Exec(testContext(t), ExecConfig{ExecPath: execPath(), Stdout: w,
				Process: &specs.Process{Args: []string{"hostname"}, Cwd: "/", Env: []string{"PATH=/bin"}}})
			w.Close()
			if err != nil {
				t.Error(err)
			} else {
				var out bytes.Buffer
				_, _ = out.ReadFrom(r)
				if out.String() != cfg.ID+"\n" {
					t.Errorf("%q, want %s", &out, cfg.ID)
				}
				if ws, err := p.Wait(testContext(t)); ws != 0 || err != nil {
					t.Error(ws, err)
				}
				p.Close()
			}
			r.Close()
			if err := c.Delete(testContext(t)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left, err := List(stateDir); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}
