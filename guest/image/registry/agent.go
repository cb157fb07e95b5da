package registry

import (
	"context"
	"strings"
)

type clientKey struct{}

// OnBehalf returns a context whose requests tell registries for which client, by its
// User-Agent, they are made.
func OnBehalf(ctx context.Context, client string) context.Context {
	if client == "" {
		return ctx
	}
	return context.WithValue(ctx, clientKey{}, client)
}

// agent is the User-Agent of a request: the engine's, and as docker writes it the
// client's.
func (c *Client) agent(ctx context.Context) string {
	client, _ := ctx.Value(clientKey{}).(string)
	if client == "" {
		return c.opts.UserAgent
	}
	return c.opts.UserAgent + " UpstreamClient(" + comment(client) + ")"
}

// comment makes text fit for the parentheses of a header's comment.
func comment(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r < ' ' || r > '~':
			continue
		case strings.ContainsRune(`();\`, r):
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}
