package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
)

type statusCmd struct {
	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"text, json or yaml."`
	Client bool   `name:"client" hidden:""`
}

// profileStatus is one profile in JSON, with tsh's field names.
type profileStatus struct {
	ProfileURL        string              `json:"profile_url"`
	Username          string              `json:"username"`
	ActiveRequests    []string            `json:"active_requests,omitempty"`
	Cluster           string              `json:"cluster"`
	Roles             []string            `json:"roles"`
	Traits            map[string][]string `json:"traits,omitempty"`
	Logins            []string            `json:"logins,omitempty"`
	KubernetesEnabled bool                `json:"kubernetes_enabled"`
	Databases         []string            `json:"databases,omitempty"`
	ValidUntil        time.Time           `json:"valid_until"`
	Extensions        []string            `json:"extensions,omitempty"`
	CriticalOptions   map[string]string   `json:"critical_options,omitempty"`
	AllowedResources  []string            `json:"allowed_resources,omitempty"`
}

// statusJSON is the whole of "status -f json".
type statusJSON struct {
	Active      *profileStatus    `json:"active,omitempty"`
	Profiles    []profileStatus   `json:"profiles"`
	Environment map[string]string `json:"environment,omitempty"`
}

// Run shows who the user is, from files alone.
func (c *statusCmd) Run(p *program) error {
	list, err := p.home.List()
	if err != nil {
		return err
	}
	if p.ProxyAddr != "" {
		f, err := p.selected()
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(o profile.Profile) bool { return o.Name() == f.Name() })
		list = append([]profile.Profile{f}, list...)
	}
	var all []profileStatus
	for _, f := range list {
		s, err := p.statusOf(f)
		if errors.Is(err, sallyport.ErrUnauthorized) {
			continue
		}
		if err != nil {
			return err
		}
		all = append(all, s)
	}
	if c.Format != "text" {
		return c.encode(p, all)
	}
	return c.text(p, all)
}

func (c *statusCmd) encode(p *program, all []profileStatus) error {
	out := statusJSON{Profiles: []profileStatus{}, Environment: environment()}
	if len(all) > 0 {
		out.Active, out.Profiles = &all[0], append(out.Profiles, all[1:]...)
	}
	if err := encode(p.stdout, c.Format, out); err != nil {
		return err
	}
	if out.Active == nil {
		return profile.ErrNotLoggedIn
	}
	return nil
}

func environment() map[string]string {
	out := map[string]string{}
	for _, name := range []string{"SALLY_PROXY", "SALLY_CLUSTER", "TELEPORT_PROXY", "TELEPORT_CLUSTER", "TELEPORT_SITE", "KUBECONFIG"} {
		if v := os.Getenv(name); v != "" {
			out[name] = v
		}
	}
	return out
}

func (c *statusCmd) text(p *program, all []profileStatus) error {
	if len(all) == 0 {
		return profile.ErrNotLoggedIn
	}
	for i, s := range all {
		mark := "  "
		if i == 0 {
			mark = "> "
		}
		writeStatus(p.stdout, mark, s)
	}
	if !time.Now().Before(all[0].ValidUntil) {
		return problem(sallyport.ErrUnauthorized, "Active profile expired.", "sally login --proxy="+strings.TrimPrefix(all[0].ProfileURL, "https://"))
	}
	return nil
}

func writeStatus(w io.Writer, mark string, s profileStatus) {
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s%-20s%s\n", mark, name+":", fail.Clean(value))
			mark = "  "
		}
	}
	row("Profile URL", s.ProfileURL)
	row("Logged in as", s.Username)
	row("Active requests", strings.Join(s.ActiveRequests, ", "))
	row("Cluster", s.Cluster)
	row("Roles", strings.Join(s.Roles, ", "))
	row("Logins", strings.Join(s.Logins, ", "))
	row("Kubernetes", map[bool]string{true: "enabled", false: "disabled"}[s.KubernetesEnabled])
	row("Databases", strings.Join(s.Databases, ", "))
	row("Allowed Resources", strings.Join(s.AllowedResources, ", "))
	row("Valid until", s.ValidUntil.Local().Format("2006-01-02 15:04:05 -0700 MST")+" "+validFor(time.Until(s.ValidUntil)))
	row("Extensions", strings.Join(s.Extensions, ", "))
	fmt.Fprintln(w)
}

func validFor(left time.Duration) string {
	switch {
	case left <= 0:
		return "[EXPIRED]"
	case left < time.Minute:
		return "[valid for <1m]"
	default:
		return "[valid for " + left.Round(time.Minute).String() + "]"
	}
}

func (p *program) statusOf(f profile.Profile) (profileStatus, error) {
	c, err := p.home.Credentials(f)
	if err != nil {
		return profileStatus{}, err
	}
	s := profileStatus{
		ProfileURL: "https://" + f.WebProxyAddr, Username: f.User, Cluster: f.Cluster, ActiveRequests: c.Identity.ActiveRequests,
		Roles: c.Identity.Roles, Traits: c.Identity.Traits, Logins: c.Identity.Principals,
		ValidUntil: c.Identity.NotAfter, AllowedResources: c.Identity.AllowedResources, Databases: p.databasesOf(f),
	}
	if _, cert, err := p.home.SSHSigner(f); err == nil {
		for name := range cert.Extensions {
			s.Extensions = append(s.Extensions, name)
		}
		slices.Sort(s.Extensions)
		s.CriticalOptions = cert.CriticalOptions
	}
	return s, nil
}

// databasesOf are those that the user has logged in to.
func (p *program) databasesOf(f profile.Profile) []string {
	files, _ := filepath.Glob(filepath.Join(p.home.DBDir(f), "*.crt"))
	var out []string
	for _, file := range files {
		out = append(out, strings.TrimSuffix(filepath.Base(file), ".crt"))
	}
	return out
}

// encode writes v as JSON or YAML.
func encode(w io.Writer, format string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if format == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(w, strings.TrimRight(string(b), "\n"))
	return err
}
