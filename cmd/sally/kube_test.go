package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crypto/tls"

	"github.com/goccy/go-yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

const theirKubeconfig = `apiVersion: v1
kind: Config
current-context: theirs
preferences:
  colors: true
clusters:
- name: theirs
  cluster:
    server: https://elsewhere
users:
- name: theirs
  user:
    token: abc
contexts:
- name: theirs
  context:
    cluster: theirs
    user: theirs
`

// someKube is an entry as a login would make it.
func someKube(t *testing.T, p *program, name string) kubeEntry {
	t.Helper()
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.home.Credentials(f)
	if err != nil {
		t.Fatal(err)
	}
	list, err := (&kubeLoginCmd{Namespace: "web"}).entries(p, &credentials{Credentials: c}, []string{name})
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

// TestKubeconfig: a login adds, the next one replaces, a logout takes away, and
// what others wrote stays.
func TestKubeconfig(t *testing.T) {
	p := newProgram(t)
	path := filepath.Join(t.TempDir(), "config")
	t.Setenv("KUBECONFIG", path+string(filepath.ListSeparator)+"/other")
	if err := os.WriteFile(path, []byte(theirKubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	e := someKube(t, p, "prod")
	for range 2 {
		err := editKubeconfig(path, func(k *kubeconfigFile) {
			k.put(e)
			k.set("current-context", e.context)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var got struct {
		Current     string         `yaml:"current-context"`
		Preferences map[string]any `yaml:"preferences"`
		Clusters    []struct {
			Name    string
			Cluster map[string]any
		}
		Users []struct {
			Name string
			User struct {
				Token string
				Exec  struct {
					APIVersion      string `yaml:"apiVersion"`
					Command         string
					Args            []string
					InteractiveMode string `yaml:"interactiveMode"`
				}
			}
		}
		Contexts []struct {
			Name    string
			Context map[string]string
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Current != "gw.test-prod" || got.Preferences["colors"] != true || len(got.Clusters) != 2 || len(got.Users) != 2 || len(got.Contexts) != 2 {
		t.Fatalf("%s", b)
	}
	cluster, user := got.Clusters[1].Cluster, got.Users[1].User.Exec
	if cluster["server"] != "https://gw.test:8443" || cluster["tls-server-name"] != "prod.kube.gw.test" || cluster["certificate-authority-data"] == "" {
		t.Errorf("%v", cluster)
	}
	if user.APIVersion != "client.authentication.k8s.io/v1" || user.InteractiveMode != "Never" || user.Command != p.self ||
		!slices.Equal(user.Args, []string{"kube", "credentials", "--kube-cluster=prod", "--teleport-cluster=gw.test", "--proxy=gw.test:8443"}) {
		t.Errorf("%+v", user)
	}
	if got.Contexts[1].Context["namespace"] != "web" || got.Users[0].User.Token != "abc" {
		t.Errorf("%+v %+v", got.Contexts, got.Users[0])
	}
	if s := selectedServer(); s != "prod.kube.gw.test" {
		t.Errorf("selected: %q", s)
	}
	f, err := p.home.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if err := forgetKube(f); err != nil {
		t.Fatal(err)
	}
	if b, _ = os.ReadFile(path); strings.Contains(string(b), "gw.test") || !strings.Contains(string(b), "token: abc") {
		t.Errorf("after the logout: %s", b)
	}
	before := string(b)
	if err := forgetKube(f); err != nil {
		t.Fatal(err)
	}
	if b, _ = os.ReadFile(path); string(b) != before {
		t.Error("a file without our entries was changed")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestKubeconfigAwkward: strings that one reader of YAML takes for numbers, for
// nothing or for no YAML at all are what they were, as kubectl reads them.
func TestKubeconfigAwkward(t *testing.T) {
	p := newProgram(t)
	path := filepath.Join(t.TempDir(), "config")
	t.Setenv("KUBECONFIG", path)
	awkward := []string{"12345e7", "12e4", "08", "5e10", ".inf", ".nan", "1e+5", "? q", "\x01", "\ta", "\n x\n", "y", "null", "~", "0x10", "1_000", "12:30:45", "-", "# no", "a: b", "", "2001-01-01", "é\u2028"}
	type namedUser struct {
		Name string         `json:"name"`
		User map[string]any `json:"user"`
	}
	type config struct {
		Users    []namedUser `json:"users"`
		Contexts []struct {
			Name    string            `json:"name"`
			Context map[string]string `json:"context"`
		} `json:"contexts"`
	}
	theirs := config{}
	for i, s := range awkward {
		theirs.Users = append(theirs.Users, namedUser{fmt.Sprintf("%d %s", i, s), map[string]any{"password": s}})
	}
	b, err := sigsyaml.Marshal(theirs)
	must(t, err)
	must(t, os.WriteFile(path, append([]byte("# mine\n"), b...), 0o600))
	e := someKube(t, p, "prod")
	e.namespace = "12345e7"
	must(t, editKubeconfig(path, func(k *kubeconfigFile) { k.put(e) }))
	var got config
	b, err = os.ReadFile(path)
	must(t, err)
	must(t, sigsyaml.Unmarshal(b, &got))
	if !slices.EqualFunc(got.Users[:len(awkward)], theirs.Users, func(a, b namedUser) bool { return a.Name == b.Name && a.User["password"] == b.User["password"] }) {
		t.Errorf("users became %q", got.Users)
	}
	if got.Contexts[0].Context["namespace"] != "12345e7" || !strings.HasPrefix(string(b), "# mine\n") {
		t.Errorf("%s", b)
	}
	f, err := p.home.Load("")
	must(t, err)
	must(t, forgetKube(f))
	got = config{}
	b, err = os.ReadFile(path)
	must(t, err)
	must(t, sigsyaml.Unmarshal(b, &got))
	if len(got.Users) != len(awkward) || len(got.Contexts) != 0 {
		t.Errorf("after the logout: %s", b)
	}
}

// TestKubeconfigFirst: there may be no file yet, or one that says nothing; and our
// own names may be words of YAML.
func TestKubeconfigFirst(t *testing.T) {
	p := newProgram(t)
	for i, old := range []string{"", "# mine\n", "---\n", "null\n", "{}\n", "clusters: null\nusers: []\n", "kind: Config\n---\n", "kind: Config\n...\n"} {
		path := filepath.Join(t.TempDir(), "config")
		if i > 0 {
			must(t, os.WriteFile(path, []byte(old), 0o600))
		}
		for _, name := range []string{"web", "no", "on", "y", "off", "null", "12e4", "0x1"} {
			e := someKube(t, p, "prod")
			e.namespace, e.context = name, name
			must(t, editKubeconfig(path, func(k *kubeconfigFile) { k.put(e); k.set("current-context", name) }))
			b, err := os.ReadFile(path)
			must(t, err)
			var got struct {
				Current  string `json:"current-context"`
				Contexts []struct {
					Name    string            `json:"name"`
					Context map[string]string `json:"context"`
				} `json:"contexts"`
			}
			if err := sigsyaml.Unmarshal(b, &got); err != nil {
				t.Fatalf("%q: %v\n%s", name, err, b)
			}
			if last := got.Contexts[len(got.Contexts)-1]; got.Current != name || last.Name != name || last.Context["namespace"] != name {
				t.Errorf("%q became %+v", name, got)
			}
		}
	}
	t.Setenv("KUBECONFIG", os.DevNull)
	f, err := p.home.Load("")
	must(t, err)
	must(t, forgetKube(f))
}

// TestKubeconfigKeeps: a change that would harm what others wrote is not made.
func TestKubeconfigKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	const anchored = "users:\n- &a\n  name: a\n  user: {token: x}\n- *a\n"
	for _, tt := range []struct {
		old    string
		change func(*kubeconfigFile)
	}{
		{theirKubeconfig, func(k *kubeconfigFile) { k.entries("users")[0].Content[1].Value = "other" }},
		{theirKubeconfig, func(k *kubeconfigFile) { k.get("preferences").Content[0].Value = "other" }},
		{anchored, func(k *kubeconfigFile) { k.get("users").Content = k.get("users").Content[1:] }},
	} {
		must(t, os.WriteFile(path, []byte(tt.old), 0o600))
		if err := editKubeconfig(path, tt.change); err == nil {
			t.Errorf("a change that harms %q is made", tt.old)
		}
		if b, _ := os.ReadFile(path); string(b) != tt.old {
			t.Errorf("%q became %q", tt.old, b)
		}
	}
}

// TestKubeconfigBroken: a file that cannot be read is not replaced.
func TestKubeconfigBroken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	for _, text := range []string{"clusters: [", "clusters: {a: b}", "- x", "a: b\n---\nc: d"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := editKubeconfig(path, func(k *kubeconfigFile) { k.set("a", "b") }); err == nil {
			t.Errorf("%q is taken", text)
		}
		if b, _ := os.ReadFile(path); string(b) != text {
			t.Errorf("%q became %q", text, b)
		}
	}
}

func TestKubeCredentials(t *testing.T) {
	p := newProgram(t)
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	p.stdout = &out
	if err := (&kubeCredentialsCmd{Kube: "prod", Cluster: f.Cluster}).Run(p); err != nil {
		t.Fatal(err)
	}
	var got execCredential
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair([]byte(got.Status.Cert), []byte(got.Status.Key)); err != nil || got.Kind != "ExecCredential" || got.APIVersion != "client.authentication.k8s.io/v1" || got.Status.Expires == "" {
		t.Errorf("%v %+v", err, got)
	}
	if err := (&kubeCredentialsCmd{Kube: "prod", Cluster: "other"}).Run(p); err == nil {
		t.Error("credentials for another cluster")
	}
	for info, want := range map[string]string{"": "v1", "x": "v1", `{"apiVersion":"client.authentication.k8s.io/v1beta1"}`: "v1beta1", `{"apiVersion":"client.authentication.k8s.io/v1"}`: "v1"} {
		if got := execVersion(info); got != "client.authentication.k8s.io/"+want {
			t.Errorf("%s: %s", info, got)
		}
	}
}

// TestLocalKeys: only who holds the key of this run gets through a local proxy.
func TestLocalKeys(t *testing.T) {
	ours, err := newLocalKeys("prod.kube.gw.test")
	if err != nil {
		t.Fatal(err)
	}
	others, err := newLocalKeys("prod.kube.gw.test")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		certs []tls.Certificate
		ok    bool
	}{{[]tls.Certificate{ours.pair}, true}, {[]tls.Certificate{others.pair}, false}, {nil, false}} {
		a, b := net.Pipe()
		done := make(chan error, 1)
		server := tls.Server(b, ours.config())
		go func() {
			done <- server.Handshake()
			b.Close()
		}()
		client := tls.Client(a, &tls.Config{ServerName: "prod.kube.gw.test", RootCAs: ours.config().ClientCAs, Certificates: tt.certs, NextProtos: []string{"http/1.1"}})
		client.Handshake() // of 1.3: ends before the server has judged
		go client.Read(make([]byte, 1))
		if err := <-done; (err == nil) != tt.ok {
			t.Errorf("%d certificates: %v", len(tt.certs), err)
		}
		a.Close()
	}
}

func TestKubeLoginFlags(t *testing.T) {
	for _, c := range []kubeLoginCmd{{}, {All: true, Name: "a"}, {Name: "a", As: "x"}, {Name: "a", AsGroups: []string{"x"}}, {All: true, Labels: "a=b"}, {All: true, Context: "x"}} {
		if c.unserved() == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
