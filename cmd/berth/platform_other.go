//go:build !windows

package main

import "github.com/spf13/cobra"

// platformCommands are those that one platform alone has.
func (a *app) platformCommands() []*cobra.Command { return nil }

// systemParts are what an administrator has installed for Berth.
func systemParts() []installed { return nil }

// giveBack makes the directory and what is in it the user's again.
const giveBack = `chown -R "$USER" %s`
