package main

import (
	"embed"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// files holds what images have beside packages: files/NAME is laid over the root.
//
//go:embed all:files
var files embed.FS

// recipe is how an image is made.
type recipe struct {
	name string
	// from is the image below, "" for Debian's own packages and "scratch" for none.
	from     string
	packages []string
	// remove are paths, as for rm -rf, that nobody needs in a test.
	remove []string
	// program is a package of this module that becomes /NAME.
	program string
	// goroot puts this host's Go toolchain at /usr/local/go.
	goroot bool
	config ocispec.ImageConfig
}

var (
	path   = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	silent = "DEBIAN_FRONTEND=noninteractive"
)

var recipes = []recipe{
	{
		name:   "debian",
		config: ocispec.ImageConfig{Env: []string{path}, Cmd: []string{"bash"}},
	},
	{
		name: "redis", from: "debian", packages: []string{"redis-server"},
		config: ocispec.ImageConfig{
			Env: []string{path}, User: "redis", WorkingDir: "/data",
			Volumes:      map[string]struct{}{"/data": {}},
			ExposedPorts: map[string]struct{}{"6379/tcp": {}},
			Cmd:          []string{"redis-server", "--protected-mode", "no", "--dir", "/data"},
		},
	},
	{
		name: "postgres", from: "debian", packages: []string{"postgresql"},
		// LLVM is most of the package's size, and compiles queries at run time.
		remove: []string{"/usr/lib/postgresql/*/lib/bitcode", "/usr/lib/postgresql/*/lib/llvmjit*", "/usr/lib/x86_64-linux-gnu/libLLVM*",
			"/usr/lib/aarch64-linux-gnu/libLLVM*", "/usr/lib/llvm*", "/usr/lib/*/libz3*", "/usr/share/perl", "/usr/lib/*/perl", "/usr/lib/*/libperl*", "/usr/share/i18n"},
		config: ocispec.ImageConfig{
			Env:          []string{path, "PGDATA=/var/lib/postgresql/data"},
			Volumes:      map[string]struct{}{"/var/lib/postgresql/data": {}},
			ExposedPorts: map[string]struct{}{"5432/tcp": {}},
			Entrypoint:   []string{"/usr/local/bin/postgres-entrypoint"},
			Cmd:          []string{"postgres"},
			StopSignal:   "SIGINT",
		},
	},
	{
		name: "nginx", from: "debian", packages: []string{"nginx-light"},
		config: ocispec.ImageConfig{
			Env:          []string{path},
			ExposedPorts: map[string]struct{}{"80/tcp": {}},
			Cmd:          []string{"nginx", "-g", "daemon off; error_log /dev/stderr info;"},
			StopSignal:   "SIGQUIT",
		},
	},
	{
		name: "node", from: "debian", packages: []string{"nodejs", "npm"},
		config: ocispec.ImageConfig{Env: []string{path}, Cmd: []string{"node"}},
	},
	{
		name: "golang", from: "debian", goroot: true,
		config: ocispec.ImageConfig{
			Env:        []string{"PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOTOOLCHAIN=local", "GOPATH=/go", "CGO_ENABLED=0"},
			WorkingDir: "/go", Cmd: []string{"bash"},
		},
	},
	{
		name: "service", from: "scratch", program: "scripts/testimages/service",
		config: ocispec.ImageConfig{
			Env:          []string{path},
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Entrypoint:   []string{"/service"},
		},
	},
}
