package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

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

// kubeconfigFile is a kubeconfig file with all that others wrote into it.
type kubeconfigFile struct{ root yaml.MapSlice }

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
			failed = problem(errInvalid, path+" is not a kubeconfig file", "repair it, or name another with KUBECONFIG")
			return old
		}
		change(k)
		out, err := yaml.Marshal(k.root)
		if err != nil {
			failed = err
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
	if strings.TrimSpace(text) != "" {
		if err := yaml.UnmarshalWithOptions([]byte(text), &k.root, yaml.UseOrderedMap()); err != nil {
			return nil, err
		}
	}
	for _, list := range []string{"clusters", "users", "contexts"} {
		if v := k.get(list); v != nil {
			if _, ok := v.([]any); !ok {
				return nil, fmt.Errorf("%s is not a list", list)
			}
		}
	}
	if k.get("apiVersion") == nil {
		k.set("apiVersion", "v1")
	}
	if k.get("kind") == nil {
		k.set("kind", "Config")
	}
	return k, nil
}

func field(m yaml.MapSlice, key string) any {
	for _, item := range m {
		if item.Key == key {
			return item.Value
		}
	}
	return nil
}

func (k *kubeconfigFile) get(key string) any { return field(k.root, key) }

func (k *kubeconfigFile) set(key string, value any) {
	for i := range k.root {
		if k.root[i].Key == key {
			k.root[i].Value = value
			return
		}
	}
	k.root = append(k.root, yaml.MapItem{Key: key, Value: value})
}

// named finds an entry of a list by its name.
func (k *kubeconfigFile) named(list, name string) yaml.MapSlice {
	all, _ := k.get(list).([]any)
	for _, e := range all {
		if m, ok := e.(yaml.MapSlice); ok && field(m, "name") == name {
			return m
		}
	}
	return nil
}

// putNamed replaces an entry of a list, or adds it.
func (k *kubeconfigFile) putNamed(list, what, name string, value yaml.MapSlice) {
	entry := yaml.MapSlice{{Key: "name", Value: name}, {Key: what, Value: value}}
	all, _ := k.get(list).([]any)
	all = slices.Clone(all)
	for i, e := range all {
		if m, ok := e.(yaml.MapSlice); ok && field(m, "name") == name {
			all[i] = entry
			k.set(list, all)
			return
		}
	}
	k.set(list, append(all, entry))
}

func (k *kubeconfigFile) drop(list string, gone func(yaml.MapSlice) bool) {
	all, _ := k.get(list).([]any)
	kept := slices.DeleteFunc(slices.Clone(all), func(e any) bool {
		m, ok := e.(yaml.MapSlice)
		return ok && gone(m)
	})
	if len(kept) != len(all) {
		k.set(list, kept)
	}
}

// put adds a cluster, its user and its context.
func (k *kubeconfigFile) put(e kubeEntry) {
	k.putNamed("clusters", "cluster", e.name, yaml.MapSlice{
		{Key: "server", Value: e.server},
		{Key: "tls-server-name", Value: e.serverName},
		{Key: "certificate-authority-data", Value: base64.StdEncoding.EncodeToString(e.cas)},
	})
	user := yaml.MapSlice{}
	if e.command == "" {
		user = append(user, yaml.MapItem{Key: "client-certificate-data", Value: base64.StdEncoding.EncodeToString(e.cert)},
			yaml.MapItem{Key: "client-key-data", Value: base64.StdEncoding.EncodeToString(e.key)})
	} else {
		user = append(user, yaml.MapItem{Key: "exec", Value: e.exec()})
	}
	k.putNamed("users", "user", e.name, user)
	context := yaml.MapSlice{{Key: "cluster", Value: e.name}, {Key: "user", Value: e.name}}
	if e.namespace != "" {
		context = append(context, yaml.MapItem{Key: "namespace", Value: e.namespace})
	}
	k.putNamed("contexts", "context", e.context, context)
}

// exec is how kubectl gets the certificate (client.authentication.k8s.io/v1).
func (e *kubeEntry) exec() yaml.MapSlice {
	env := []any{}
	for _, v := range e.env {
		env = append(env, yaml.MapSlice{{Key: "name", Value: v[0]}, {Key: "value", Value: v[1]}})
	}
	return yaml.MapSlice{
		{Key: "apiVersion", Value: "client.authentication.k8s.io/v1"},
		{Key: "command", Value: e.command},
		{Key: "args", Value: e.args},
		{Key: "env", Value: env},
		{Key: "interactiveMode", Value: "Never"},
		{Key: "provideClusterInfo", Value: false},
		{Key: "installHint", Value: "sally is not where it was when you logged in: run sally kube login again"},
	}
}

// forget takes out what logins to a gateway have written.
func (k *kubeconfigFile) forget(f profile.Profile) {
	ours := map[any]bool{}
	k.drop("users", func(m yaml.MapSlice) bool {
		user, _ := field(m, "user").(yaml.MapSlice)
		call, _ := field(user, "exec").(yaml.MapSlice)
		args, _ := field(call, "args").([]any)
		mine := len(args) >= 2 && args[0] == "kube" && args[1] == "credentials" && slices.Contains(args, any("--proxy="+f.WebProxyAddr)) &&
			slices.Contains(args, any("--teleport-cluster="+f.Cluster))
		if mine {
			ours[field(m, "name")] = true
		}
		return mine
	})
	if len(ours) == 0 {
		return
	}
	k.drop("clusters", func(m yaml.MapSlice) bool { return ours[field(m, "name")] })
	gone := map[any]bool{}
	k.drop("contexts", func(m yaml.MapSlice) bool {
		context, _ := field(m, "context").(yaml.MapSlice)
		mine := ours[field(context, "user")]
		if mine {
			gone[field(m, "name")] = true
		}
		return mine
	})
	if gone[k.get("current-context")] {
		k.set("current-context", "")
	}
}

// forgetKube takes a profile's clusters out of the kubeconfig file. A file that
// is none, or not there, is left alone.
func forgetKube(f profile.Profile) error {
	path, err := kubeconfigPath()
	if err != nil {
		return nil
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return profile.EditFile(path, func(old string) string {
		k, err := parseKubeconfig(old)
		if err != nil {
			return old
		}
		before, err := yaml.Marshal(k.root)
		if err != nil {
			return old
		}
		k.forget(f)
		out, err := yaml.Marshal(k.root)
		if err != nil || string(out) == string(before) {
			return old
		}
		return string(out)
	})
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
	current, _ := k.get("current-context").(string)
	context, _ := field(k.named("contexts", current), "context").(yaml.MapSlice)
	name, _ := field(context, "cluster").(string)
	cluster, _ := field(k.named("clusters", name), "cluster").(yaml.MapSlice)
	server, _ := field(cluster, "tls-server-name").(string)
	return server
}

func (k *kubeconfigFile) text() ([]byte, error) { return yaml.Marshal(k.root) }
