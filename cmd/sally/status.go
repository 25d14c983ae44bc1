package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/identity"
)

type statusCmd struct {
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
	Verbose bool   `name:"verbose" short:"v" help:"Show traits too."`
	Client  bool   `name:"client" hidden:"" negatable:""`
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

// Run shows who the user is, from files alone. As with tsh, what is known is
// printed before a profile that has ended makes it an error.
func (c *statusCmd) Run(p *program) error {
	active, others, err := p.profiles()
	if err != nil {
		return err
	}
	if active == nil && len(others) == 0 {
		return profile.ErrNotLoggedIn
	}
	if c.Format != "text" {
		err = output.Write(p.stdout, c.Format, statusJSON{Active: active, Profiles: append([]profileStatus{}, others...), Environment: environment()})
	} else {
		err = c.text(p, active, others)
	}
	switch {
	case err != nil:
		return err
	case active == nil:
		return problem(sallyport.ErrUnauthorized, "No active profile.", "sally login --proxy="+strings.TrimPrefix(others[0].ProfileURL, "https://"))
	case !time.Now().Before(active.ValidUntil):
		return problem(sallyport.ErrUnauthorized, "Active profile expired.", "sally login --proxy="+strings.TrimPrefix(active.ProfileURL, "https://"))
	}
	return nil
}

// profiles reads all profiles; active is the one that --proxy names, else the
// current one, nil without.
func (p *program) profiles() (active *profileStatus, others []profileStatus, err error) {
	if p.held != nil {
		s, err := p.statusOf(p.held.cred.Profile)
		return &s, nil, err
	}
	chosen, ok := p.home.Current()
	if p.ProxyAddr != "" || p.User != "" {
		if chosen, err = p.selected(); err != nil {
			return nil, nil, err
		}
		ok = true
	}
	list, err := p.home.List()
	if err != nil {
		return nil, nil, err
	}
	for _, f := range list {
		if ok && f.Name() == chosen.Name() {
			f = chosen // perhaps as another user
		}
		s, err := p.statusOf(f)
		if errors.Is(err, sallyport.ErrUnauthorized) {
			continue // a profile whose keys are gone
		}
		if err != nil {
			return nil, nil, err
		}
		if ok && f.Name() == chosen.Name() {
			active = &s
		} else {
			others = append(others, s)
		}
	}
	return active, others, nil
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

func (c *statusCmd) text(p *program, active *profileStatus, others []profileStatus) error {
	verbose := c.Verbose || p.Debug
	var b bytes.Buffer
	if active != nil {
		writeStatus(&b, verbose, "> ", *active)
	}
	for _, s := range others {
		writeStatus(&b, verbose, "  ", s)
	}
	_, err := p.stdout.Write(b.Bytes())
	return err
}

func writeStatus(w *bytes.Buffer, verbose bool, mark string, s profileStatus) {
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
	if verbose {
		for _, name := range slices.Sorted(maps.Keys(s.Traits)) {
			row("Trait "+name, strings.Join(s.Traits[name], ", "))
		}
	}
	row("Logins", strings.Join(s.Logins, ", "))
	row("Kubernetes", map[bool]string{true: "enabled", false: "disabled"}[s.KubernetesEnabled])
	row("Databases", strings.Join(s.Databases, ", "))
	row("Allowed Resources", strings.Join(s.AllowedResources, ", "))
	row("Valid until", s.ValidUntil.Local().Format("2006-01-02 15:04:05 -0700 MST")+" "+validFor(time.Until(s.ValidUntil)))
	row("Extensions", strings.Join(s.Extensions, ", "))
	fmt.Fprintln(w)
}

// logins are those of a certificate's principals that are OS logins: one that begins
// with a hyphen is none, and stands for something of the cluster's, such as that
// somebody may log in nowhere.
func logins(principals []string) []string {
	return slices.DeleteFunc(slices.Clone(principals), func(name string) bool { return strings.HasPrefix(name, "-") })
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

func (p *program) sshCertificate(f profile.Profile) (*ssh.Certificate, error) {
	if p.held != nil {
		return p.held.file.SSHCertificate(p.held.path)
	}
	return p.home.SSHCertificate(f)
}

func (p *program) statusOf(f profile.Profile) (profileStatus, error) {
	c, err := p.credentials(f)
	if err != nil {
		return profileStatus{}, err
	}
	s := profileStatus{
		ProfileURL: "https://" + f.WebProxyAddr, Username: f.User, Cluster: f.Cluster, ActiveRequests: c.Identity.ActiveRequests,
		Roles: c.Identity.Roles, Traits: c.Identity.Traits, Logins: logins(c.Identity.Principals),
		KubernetesEnabled: true, // each gateway serves it: which clusters there are, sally kube ls says
		ValidUntil:        c.Identity.NotAfter, AllowedResources: c.Identity.AllowedResources, Databases: p.databasesOf(f),
	}
	if cert, err := p.sshCertificate(f); err == nil {
		for name := range cert.Extensions {
			if name != identity.SSHExtensionName { // what it holds is in the rows above
				s.Extensions = append(s.Extensions, name)
			}
		}
		slices.Sort(s.Extensions)
		s.CriticalOptions = cert.CriticalOptions
	}
	return s, nil
}
