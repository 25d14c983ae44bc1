package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
)

// kubeEntry is one cluster in a kubeconfig file, with its user and its context.
type kubeEntry struct {
	kube       string // the name here
	name       string // of cluster and user in the file
	context    string
	namespace  string
	server     string
	serverName string
	cas        []byte

	command string // that prints credentials; "": cert and key
	args    []string
	env     [][2]string

	cert, key []byte
}

// kubeconfigFile is a kubeconfig file with all that others wrote into it, their
// comments and their quotes.
type kubeconfigFile struct {
	doc     yaml.Node                  // the document, of one mapping
	touched map[string]map[string]bool // by key: names of entries that were put or taken out; nil: all of it
}

// maxKubeconfig bounds the file that is read.
const maxKubeconfig = 16 << 20

// kubeconfigPath is the file that kubectl itself would change: the first of
// KUBECONFIG, or ~/.kube/config.
func kubeconfigPath() (string, error) {
	for path := range strings.SplitSeq(os.Getenv("KUBECONFIG"), string(filepath.ListSeparator)) {
		if path != "" {
			return path, nil
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", problem(errInvalid, "no home directory is known", "set HOME, or KUBECONFIG")
	}
	return filepath.Join(home, ".kube", "config"), nil
}

// editKubeconfig changes the file as a whole, or not at all.
func editKubeconfig(path string, change func(*kubeconfigFile)) error {
	var failed error
	err := profile.EditFile(path, func(old string) string {
		k, err := parseKubeconfig(old)
		if err != nil {
			failed = &sallyport.Problem{Kind: errInvalid, Fact: path + " is not a kubeconfig file", Hint: "repair it, or name another with KUBECONFIG", Cause: err}
			return old
		}
		change(k)
		out, err := k.text()
		if err == nil {
			err = k.keeps(old, string(out))
		}
		if err != nil {
			failed = &sallyport.Problem{Kind: errInvalid, Fact: path + " cannot be changed without harm to what others wrote there", Cause: err,
				Hint: "name another file with KUBECONFIG"}
			return old
		}
		return string(out)
	})
	return errors.Join(failed, err)
}

func parseKubeconfig(text string) (*kubeconfigFile, error) {
	k := &kubeconfigFile{}
	if len(text) > maxKubeconfig {
		return nil, errors.New("too large")
	}
	in := yaml.NewDecoder(strings.NewReader(text))
	switch err := in.Decode(&k.doc); {
	case errors.Is(err, io.EOF): // nothing but comments, which stay
		k.doc = yaml.Node{Kind: yaml.DocumentNode, HeadComment: strings.TrimSpace(text)}
	case err != nil:
		return nil, err
	default:
		var more yaml.Node
		for err := in.Decode(&more); !errors.Is(err, io.EOF); err = in.Decode(&more) {
			if err != nil || len(more.Content) > 0 && !isNull(more.Content[0]) {
				return nil, errors.New("several documents") // kubectl reads the first
			}
		}
	}
	if len(k.doc.Content) == 0 || isNull(k.doc.Content[0]) {
		k.doc.Content = []*yaml.Node{{Kind: yaml.MappingNode}}
	}
	if k.root().Kind != yaml.MappingNode {
		return nil, errors.New("not a mapping")
	}
	for _, list := range []string{"clusters", "users", "contexts"} {
		if v := k.get(list); !isNull(v) && v.Kind != yaml.SequenceNode {
			return nil, fmt.Errorf("%s is not a list", list)
		}
	}
	for _, own := range [][2]string{{"apiVersion", "v1"}, {"kind", "Config"}} {
		if isNull(k.get(own[0])) {
			k.set(own[0], own[1])
		}
	}
	return k, nil
}

// isNull says that there is no value, or one that says so.
func isNull(n *yaml.Node) bool { return n == nil || n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// pointed is what an alias stands for.
func pointed(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// field is a value of a mapping; nil when there is none.
func field(m *yaml.Node, key string) *yaml.Node {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return pointed(m.Content[i+1])
		}
	}
	return nil
}

// word is a scalar of a mapping; "" when there is none.
func word(m *yaml.Node, key string) string {
	if v := field(m, key); v != nil && v.Kind == yaml.ScalarNode && !isNull(v) {
		return v.Value
	}
	return ""
}

// stringNode is a string, in quotes where a reader might take it for something
// else: kubectl's still reads a bool of YAML 1.1 in "no".
func stringNode(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	var read any
	if err := sigsyaml.Unmarshal([]byte(s), &read); n.Style == 0 && (err != nil || read != s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// pairs is a mapping in this order.
func pairs(all ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i < len(all); i += 2 {
		v, ok := all[i+1].(*yaml.Node)
		if !ok {
			v = stringNode(all[i+1].(string))
		}
		m.Content = append(m.Content, stringNode(all[i].(string)), v)
	}
	return m
}

func (k *kubeconfigFile) root() *yaml.Node { return k.doc.Content[0] }

func (k *kubeconfigFile) get(key string) *yaml.Node { return field(k.root(), key) }

func (k *kubeconfigFile) set(key, value string) {
	k.setNode(key, stringNode(value))
	k.touch(key, "")
}

func (k *kubeconfigFile) setNode(key string, value *yaml.Node) {
	m := k.root()
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content[i+1] = value
			return
		}
	}
	m.Content = append(m.Content, stringNode(key), value)
}

// touch notes what may differ after the change: a key's value, or an entry of
// its list.
func (k *kubeconfigFile) touch(key, name string) {
	if k.touched == nil {
		k.touched = map[string]map[string]bool{}
	}
	if k.touched[key] == nil {
		k.touched[key] = map[string]bool{}
	}
	k.touched[key][name] = true
}

// entries are those of a list.
func (k *kubeconfigFile) entries(list string) []*yaml.Node {
	if v := k.get(list); !isNull(v) {
		return v.Content
	}
	return nil
}

// named finds an entry of a list by its name.
func (k *kubeconfigFile) named(list, name string) *yaml.Node {
	for _, e := range k.entries(list) {
		if e = pointed(e); word(e, "name") == name {
			return e
		}
	}
	return nil
}

// putNamed replaces an entry of a list, or adds it.
func (k *kubeconfigFile) putNamed(list, what, name string, value *yaml.Node) {
	k.touch(list, name)
	entry := pairs("name", name, what, value)
	if isNull(k.get(list)) {
		k.setNode(list, &yaml.Node{Kind: yaml.SequenceNode})
	}
	all := k.get(list)
	if len(all.Content) == 0 {
		all.Style = 0 // "[]"
	}
	for i, e := range all.Content {
		if word(pointed(e), "name") == name {
			all.Content[i] = entry
			return
		}
	}
	all.Content = append(all.Content, entry)
}

func (k *kubeconfigFile) drop(list string, gone func(*yaml.Node) bool) {
	all := k.get(list)
	if isNull(all) {
		return
	}
	all.Content = slices.DeleteFunc(all.Content, func(e *yaml.Node) bool {
		e = pointed(e)
		yes := gone(e)
		if yes {
			k.touch(list, word(e, "name"))
		}
		return yes
	})
}

// keeps says that new has what old has, in what was not touched, as kubectl reads
// both.
func (k *kubeconfigFile) keeps(old, new string) error {
	before, err := k.others(old)
	if err != nil {
		return err
	}
	after, err := k.others(new)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(before, after) {
		return errors.New("an entry of somebody else's would change")
	}
	return nil
}

// others is what a file has that was not touched.
func (k *kubeconfigFile) others(text string) (map[string]any, error) {
	var out map[string]any
	if err := sigsyaml.Unmarshal([]byte(text), &out); err != nil {
		return nil, err
	}
	if out == nil { // a file that says nothing
		out = map[string]any{}
	}
	for key, names := range k.touched {
		if names[""] {
			delete(out, key)
			continue
		}
		list, _ := out[key].([]any)
		list = slices.DeleteFunc(list, func(e any) bool {
			m, _ := e.(map[string]any)
			name, _ := m["name"].(string)
			return names[name]
		})
		if out[key] = list; len(list) == 0 {
			delete(out, key)
		}
	}
	return out, nil
}

// text is as kubectl itself would indent it.
func (k *kubeconfigFile) text() ([]byte, error) {
	var b bytes.Buffer
	out := yaml.NewEncoder(&b)
	out.SetIndent(2)
	out.CompactSeqIndent()
	if err := errors.Join(out.Encode(&k.doc), out.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// put adds a cluster, its user and its context.
func (k *kubeconfigFile) put(e kubeEntry) {
	k.putNamed("clusters", "cluster", e.name, pairs("server", e.server, "tls-server-name", e.serverName,
		"certificate-authority-data", base64.StdEncoding.EncodeToString(e.cas)))
	user := pairs("exec", e.exec())
	if e.command == "" {
		user = pairs("client-certificate-data", base64.StdEncoding.EncodeToString(e.cert), "client-key-data", base64.StdEncoding.EncodeToString(e.key))
	}
	k.putNamed("users", "user", e.name, user)
	context := pairs("cluster", e.name, "user", e.name)
	if e.namespace != "" {
		context = pairs("cluster", e.name, "user", e.name, "namespace", e.namespace)
	}
	k.putNamed("contexts", "context", e.context, context)
}

// exec is how kubectl gets the certificate (client.authentication.k8s.io/v1).
func (e *kubeEntry) exec() *yaml.Node {
	args, env := &yaml.Node{Kind: yaml.SequenceNode}, &yaml.Node{Kind: yaml.SequenceNode}
	for _, arg := range e.args {
		args.Content = append(args.Content, stringNode(arg))
	}
	for _, v := range e.env {
		env.Content = append(env.Content, pairs("name", v[0], "value", v[1]))
	}
	no := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "false"}
	return pairs("apiVersion", "client.authentication.k8s.io/v1", "command", e.command, "args", args, "env", env, "interactiveMode", "Never",
		"provideClusterInfo", no, "installHint", "sally is not where it was when you logged in: run sally kube login again")
}

// forget takes out what logins to a gateway have written.
func (k *kubeconfigFile) forget(f profile.Profile) {
	ours := map[string]bool{}
	k.drop("users", func(m *yaml.Node) bool {
		var args []string
		if list := field(field(field(m, "user"), "exec"), "args"); list != nil {
			for _, arg := range list.Content {
				args = append(args, pointed(arg).Value)
			}
		}
		mine := len(args) >= 2 && args[0] == "kube" && args[1] == "credentials" && slices.Contains(args, "--proxy="+f.WebProxyAddr) &&
			slices.Contains(args, "--teleport-cluster="+f.Cluster)
		if mine {
			ours[word(m, "name")] = true
		}
		return mine
	})
	if len(ours) == 0 {
		return
	}
	k.drop("clusters", func(m *yaml.Node) bool { return ours[word(m, "name")] })
	gone := map[string]bool{}
	k.drop("contexts", func(m *yaml.Node) bool {
		mine := ours[word(field(m, "context"), "user")]
		if mine {
			gone[word(m, "name")] = true
		}
		return mine
	})
	if gone[word(k.root(), "current-context")] {
		k.set("current-context", "")
	}
}

// forgetKube takes a profile's clusters out of the kubeconfig file. A file that
// is none, such as /dev/null, or not there, or has nothing of it, is left alone.
func forgetKube(f profile.Profile) error {
	path, err := kubeconfigPath()
	if err != nil {
		return nil
	}
	if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	var failed error
	err = profile.EditFile(path, func(old string) string {
		k, err := parseKubeconfig(old)
		if err != nil {
			return old
		}
		k.touched = nil // what parsing has added
		if k.forget(f); k.touched == nil {
			return old
		}
		k.touch("apiVersion", "")
		k.touch("kind", "")
		out, err := k.text()
		if err == nil {
			err = k.keeps(old, string(out))
		}
		if err != nil {
			failed = &sallyport.Problem{Kind: errInvalid, Fact: path + " still has entries of this login: they cannot be taken out without harm to others", Cause: err,
				Hint: "kubectl config delete-user, delete-context and delete-cluster do"}
			return old
		}
		return string(out)
	})
	return errors.Join(failed, err)
}

// selectedServer is the tls-server-name of kubectl's current context; "" when
// there is none.
func selectedServer() string {
	path, err := kubeconfigPath()
	if err != nil {
		return ""
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	k, err := parseKubeconfig(string(data))
	if err != nil {
		return ""
	}
	context := k.named("contexts", word(k.root(), "current-context"))
	return word(field(k.named("clusters", word(field(context, "context"), "cluster")), "cluster"), "tls-server-name")
}
