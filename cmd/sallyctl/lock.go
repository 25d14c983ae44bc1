package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// lockCmd has tctl's flags.
type lockCmd struct {
	lockTarget
	Message string        `name:"message" help:"What whoever meets the lock is told."`
	TTL     time.Duration `name:"ttl" placeholder:"DURATION" help:"How long it holds; for ever without."`
	Expires time.Time     `name:"expires" placeholder:"TIME" help:"When it ends, as 2026-01-31T15:04:05Z; never without."`
}

// lockTarget is whom a lock stops: who has all that is named.
type lockTarget struct {
	User          string `name:"user" json:"user,omitempty" help:"A user, with all sessions."`
	Role          string `name:"role" json:"role,omitempty" help:"Whoever has the role."`
	Login         string `name:"login" json:"login,omitempty" help:"An OS login, on all hosts."`
	ServerID      string `name:"server-id" json:"server_id,omitempty" help:"An agent, by the id of its host (sallyctl nodes ls)."`
	MFADevice     string `name:"mfa-device" json:"mfa_device,omitempty" help:"Sessions begun with a second factor, by its id."`
	AccessRequest string `name:"access-request" json:"access_request,omitempty" help:"Sessions by an access request, by its id."`
}

// Run makes the lock. It is in force when the command returns, at all that hear auth.
func (c *lockCmd) Run(p *program) error {
	doc, err := c.document(time.Now())
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	m, err := call(p, api.PutDocument, &sallyportv1.PutDocumentRequest{Document: doc})
	if err != nil {
		return err
	}
	for _, w := range m.GetWarnings() {
		fmt.Fprintln(p.stderr, "WARNING: "+fail.Clean(w))
	}
	_, err = fmt.Fprintf(p.stdout, "Lock %q has been created. To end it: sallyctl rm lock/%s\n", m.GetName(), m.GetName())
	return err
}

// document is the lock, under a name of its own.
func (c *lockCmd) document(now time.Time) (string, error) {
	bad := func(fact, hint string) (string, error) {
		return "", &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact, Hint: hint}
	}
	switch {
	case c.lockTarget == lockTarget{}:
		return bad("a lock needs a target", "sallyctl lock --user=NAME; others: --role, --login, --server-id, --mfa-device, --access-request")
	case c.TTL != 0 && !c.Expires.IsZero():
		return bad("--ttl and --expires both say when the lock ends", "leave out one")
	case c.TTL < 0 || c.TTL > 0 && c.TTL < time.Second:
		return bad(fmt.Sprintf("--ttl=%v: want at least 1s", c.TTL), "for example --ttl=10h")
	case !c.Expires.IsZero() && !c.Expires.After(now):
		return bad("--expires="+c.Expires.Format(time.RFC3339)+" has passed", "for example --ttl=10h")
	case c.TTL > 0:
		c.Expires = now.Add(c.TTL)
	}
	spec := map[string]any{"target": c.lockTarget}
	if c.Message != "" {
		spec["message"] = c.Message
	}
	if !c.Expires.IsZero() {
		spec["expires"] = c.Expires.UTC().Format(time.RFC3339)
	}
	b, err := json.Marshal(map[string]any{"kind": "lock", "version": "v2", "metadata": map[string]any{"name": uuid.NewString()}, "spec": spec})
	return string(b), err
}
