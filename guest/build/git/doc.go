// Package git runs git for BuildKit, which executes a program of that name when a
// build's context or an ADD is a git repository. What it executes is cmd/berth-git,
// which asks this package's Server; and that runs git in a container of
// guest/build/step, like a step of a build.
//
// # Trust
//
// A repository and its server are hostile, and git is a large program that has
// been fooled before. So the container has the root file system of git alone
// (images/build makes it), no capabilities, a network only for the commands that
// need one, and of the machine's files only the directories that this very command
// works on: the shared bare repository, the checkout, and, where a client lends
// them, a socket of its ssh agent and its list of known hosts. Nothing of it
// survives the command. Its loopback is the host's: a repository at localhost is
// where the user sees it.
//
// What a command may see is worked out from the options that BuildKit puts before
// the command's name, and from nothing that a repository says.
package git
