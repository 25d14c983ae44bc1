package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

const somePin = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestConfigureParses: what is written is taken by start, for every subset of
// the roles, with and without the flags.
func TestConfigureParses(t *testing.T) {
	all := []string{roleAuth, roleGateway, roleAgent}
	for set := 1; set < 8; set++ {
		var roles []string
		for i, r := range all {
			if set&(1<<i) != 0 {
				roles = append(roles, r)
			}
		}
		is := func(r string) bool { return slices.Contains(roles, r) }
		routes := configureCmd{Roles: roles, DataDir: defaultData}
		if is(roleGateway) {
			routes.Route = []string{"a.example.com=10.0.0.1:443,10.0.0.2:443", "*=unix:/x"}
		}
		full := configureCmd{Roles: roles, DataDir: `/x y/"z": #1`, Cluster: "gw.example.com"}
		if !is(roleAuth) {
			full.CAPin, full.Token = somePin, `/etc/to ken`
		}
		if is(roleGateway) && !is(roleAuth) {
			full.Auth = "auth.internal:3025"
		}
		if is(roleAgent) && !is(roleGateway) {
			full.Gateway = "gw.example.com:443"
		}
		for _, c := range []configureCmd{{Roles: roles, DataDir: defaultData}, routes, full} {
			if err := c.check(); err != nil {
				t.Fatalf("%v: %v", roles, err)
			}
			text := c.text()
			got, err := parseConfig([]byte(text))
			if err != nil {
				t.Errorf("%v: %v in\n%s", roles, err, text)
				continue
			}
			if !slices.Equal(got.Roles, roles) || got.DataDir != c.DataDir || c.Cluster != "" && got.Cluster != c.Cluster {
				t.Errorf("%v: %+v", roles, got)
			}
			if c.CAPin != "" && !got.has(roleAuth) {
				if got.has(roleGateway) && (got.Gateway.Auth != c.Auth || got.Gateway.Join.CAPin != somePin || got.Gateway.Join.TokenFile != c.Token) {
					t.Errorf("%v: gateway %+v", roles, got.Gateway)
				}
				if got.has(roleAgent) && (got.Agent.Join.CAPin != somePin || !got.has(roleGateway) && got.Agent.Gateways[0] != c.Gateway) {
					t.Errorf("%v: agent %+v", roles, got.Agent)
				}
			}
			if got.has(roleGateway) && len(c.Route) > 0 {
				if r := got.Gateway.Routes; len(r) != 2 || !slices.Equal(r[0].To, []string{"10.0.0.1:443", "10.0.0.2:443"}) || r[1].Names[0] != "*" || got.has(roleAuth) == got.routesAlone() {
					t.Errorf("%v: routes %+v", roles, r)
				}
			}
			// What stands in comments must be right too.
			if text := uncommented(text); !strings.Contains(text, "routes:") == got.has(roleGateway) {
				t.Errorf("%v: comments are gone:\n%s", roles, text)
			} else if _, err := parseConfig([]byte(text)); err != nil {
				t.Errorf("%v: with the comments: %v in\n%s", roles, err, text)
			}
		}
	}
}

// uncommented makes settings of the comments that hold one.
func uncommented(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "  # "); ok {
			line = "  " + rest
		}
		out.WriteString(line)
	}
	return out.String()
}

func TestConfigureRefuses(t *testing.T) {
	for _, c := range []configureCmd{
		{Roles: []string{"auth"}, Cluster: "GW"},
		{Roles: []string{"auth"}, Cluster: "a\nroles: [agent]"},
		{Roles: []string{"auth]\n# "}},
		{Roles: []string{"gatewya"}},
		{},
		{Roles: []string{"agent"}, CAPin: "sha256:1"},
		{Roles: []string{"agent"}, Gateway: "gw"},
		{Roles: []string{"agent"}, Token: "a\nb"},
		{Roles: []string{"agent"}, DataDir: "\xff"},
		{Roles: []string{"gateway"}, Route: []string{"a.example.com"}},
		{Roles: []string{"gateway"}, Route: []string{"a.example.com=b"}},
		{Roles: []string{"gateway"}, Route: []string{"a..b=b:1"}},
		{Roles: []string{"gateway"}, Route: []string{"a=b:1", "A=b:1"}},
		{Roles: []string{"auth", "gateway", "agent"}, Gateway: "gw.example.com:443"},
		{Roles: []string{"auth", "gateway", "agent"}, Auth: "auth.example.com:3025"},
		{Roles: []string{"auth", "gateway", "agent"}, CAPin: somePin},
		{Roles: []string{"auth", "gateway", "agent"}, Token: "/t"},
		{Roles: []string{"gateway"}, Gateway: "gw.example.com:443"},
		{Roles: []string{"gateway"}, Route: []string{"a=b:1"}, Token: "/t"},
		{Roles: []string{"agent"}, Auth: "auth.example.com:3025"},
		{Roles: []string{"agent"}, Route: []string{"a=b:1"}},
	} {
		err := c.Run(&program{})
		if !errors.Is(err, sallyport.ErrInvalid) || !strings.HasPrefix(err.Error(), "these flags make no configuration: ") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestConfigureWrites(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	var out strings.Builder
	p := &program{stdout: &out}
	c := configureCmd{Roles: []string{"auth"}, DataDir: defaultData, Output: file}
	if err := c.Run(p); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || !strings.Contains(out.String(), "sallyport start -c "+file) {
		t.Errorf("%v %v %q", info, err, out.String())
	}
	if _, err := loadConfig(file); err != nil {
		t.Error(err)
	}
	if err := c.Run(p); !errors.Is(err, sallyport.ErrExists) {
		t.Errorf("the second time: %v", err)
	}
	c.Force = true
	if err := c.Run(p); err != nil {
		t.Errorf("--force: %v", err)
	}
	out.Reset()
	c.Output = "-"
	if err := c.Run(p); err != nil || !strings.HasPrefix(out.String(), "# Sallyport") {
		t.Errorf("standard output: %v %q", err, out.String())
	}
}

// FuzzZ19_Scalar: text comes back from YAML as it was.
func FuzzZ19_Scalar(f *testing.F) {
	for _, s := range []string{"", "/a", "a b", "a: b", "#", "true", "1", "é", `"`, `\`, "~", "null", "{a}", "- a", "No", "\u2028", "\u0085"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, dir string) {
		c := configureCmd{Roles: []string{"auth"}, DataDir: dir}
		if dir == "" || c.check() != nil {
			return
		}
		got, err := parseConfig([]byte(c.text()))
		if err != nil || got.DataDir != dir {
			t.Fatalf("%q: %+v, %v in\n%s", dir, got, err, c.text())
		}
	})
}
