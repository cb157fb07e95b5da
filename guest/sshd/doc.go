// Package sshd is the machine's SSH server: a root shell in the virtual machine
// for the one key that the host made. It listens on vsock only, where nobody but
// the host can reach it, and checks the key all the same.
//
// It has sessions (shell, exec, pty, env, window-change, signal, with exit-status
// and exit-signal) and local forwarding (direct-tcpip). It has no sftp, no agent
// and no remote forwarding. A session's processes get SIGHUP when the session
// ends.
package sshd
