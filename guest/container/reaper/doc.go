// Package reaper is the init that a container can have in front of its program
// (docker's --init): it passes signals on to the program, reaps what its
// descendants leave behind, and ends as the program does. cmd/berth-init runs it
// when it is executed under the name docker-init.
package reaper
