package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/profile"
)

type kubeCmd struct {
	Ls          kubeLsCmd          `cmd:"" help:"List Kubernetes clusters that you may reach."`
	Login       kubeLoginCmd       `cmd:"" help:"Write what kubectl needs to reach a cluster, and select it."`
	Credentials kubeCredentialsCmd `cmd:"" hidden:"" help:"Print your certificate as kubectl takes it. The kubeconfig calls this."`
}

type kubeLsCmd struct {
	filter
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
	Quiet   bool   `name:"quiet" short:"q" help:"Without the header."`
	Verbose bool   `name:"verbose" short:"v" help:"Show labels uncut."`
}

type kubeClusterJSON struct {
	Name     string            `json:"kube_cluster_name"`
	Labels   map[string]string `json:"labels"`
	Selected bool              `json:"selected"`
}

// Run lists Kubernetes clusters.
func (c *kubeLsCmd) Run(p *program) error {
	list, err := p.listed(sallyport.KindKube, c.filter)
	if err != nil {
		return err
	}
	f, err := p.selected()
	if err != nil {
		return err
	}
	current := selectedServer()
	out := []kubeClusterJSON{}
	var rows [][]string
	for _, a := range list {
		r := a.GetResource()
		j := kubeClusterJSON{Name: r.GetName(), Labels: r.GetLabels(), Selected: current == kubeServerName(f, r.GetName())}
		if j.Labels == nil {
			j.Labels = map[string]string{}
		}
		out = append(out, j)
		rows = append(rows, []string{j.Name, labels(r.GetLabels(), c.Verbose), map[bool]string{true: "*"}[j.Selected]})
	}
	switch {
	case c.Format != "text":
		return output.Write(p.stdout, c.Format, out)
	case c.Quiet:
		for _, row := range rows {
			fmt.Fprintln(p.stdout, strings.TrimRight(strings.Join(row, " "), " "))
		}
		return nil
	}
	return p.table(c.Verbose, []string{"Kube Cluster Name", "Labels", "Selected"}, rows)
}

func kubeServerName(f profile.Profile, name string) string {
	return alpn.ServerName(string(sallyport.KindKube), name, f.Cluster)
}

// kubeContextName is the name of cluster, user and context, as tsh writes it.
func kubeContextName(f profile.Profile, name string) string { return f.Cluster + "-" + name }

type kubeLoginCmd struct {
	All       bool   `name:"all" help:"Write all clusters that you may reach, and select none."`
	Namespace string `name:"kube-namespace" short:"n" placeholder:"NAME" help:"Namespace to use without -n."`
	Context   string `name:"set-context-name" placeholder:"NAME" help:"Name of the context; {{.ClusterName}} and {{.KubeName}} stand for the names. Default: {{.ClusterName}}-{{.KubeName}}."`
	Name      string `arg:"" optional:"" help:"Name of the Kubernetes cluster, as sally kube ls shows it."`

	// Of tsh's flags these are not served.
	As       string   `name:"as" hidden:""`
	AsGroups []string `name:"as-groups" hidden:""`
	Labels   string   `name:"labels" hidden:""`
	Query    string   `name:"query" hidden:""`
}

func (c *kubeLoginCmd) unserved() error {
	switch {
	case c.As != "" || len(c.AsGroups) > 0:
		return problem(errInvalid, "your roles say as whom you act in a cluster, so --as and --as-groups have no meaning", "leave them out")
	case c.Labels != "" || c.Query != "":
		return problem(errInvalid, "this version does not choose clusters by --labels or --query", "name one, or say --all")
	case c.All == (c.Name != ""):
		return problem(errInvalid, "name one cluster, or say --all", "sally kube ls shows them")
	case c.All && c.Context != "" && !strings.Contains(c.Context, "{{.KubeName}}"):
		return problem(errInvalid, "all contexts would have one name", "--set-context-name='{{.ClusterName}}-{{.KubeName}}'")
	}
	return nil
}

// Run adds clusters to the kubeconfig file.
func (c *kubeLoginCmd) Run(p *program) error {
	if err := c.unserved(); err != nil {
		return err
	}
	var cred *credentials
	var names []string
	if c.All {
		var err error
		if cred, err = p.loadValid(); err != nil {
			return err
		}
		list, err := cred.list(p.ctx, sallyport.KindKube, "")
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.GetOnline() {
				names = append(names, a.GetResource().GetName())
			}
		}
		if len(names) == 0 {
			return problem(sallyport.ErrNotFound, "there is no Kubernetes cluster that you may reach", "sally kube ls")
		}
	} else {
		if !alpn.ValidLabel(c.Name) {
			return problem(errInvalid, fmt.Sprintf("%q cannot be a Kubernetes cluster's name here", c.Name), "sally kube ls")
		}
		var err error
		if cred, _, err = p.reachable(sallyport.KindKube, c.Name); err != nil {
			return err
		}
		names = []string{c.Name}
	}
	path, err := kubeconfigPath()
	if err != nil {
		return err
	}
	entries, err := c.entries(p, cred, names)
	if err != nil {
		return err
	}
	err = p.home.Locked(func() error {
		return editKubeconfig(path, func(k *kubeconfigFile) {
			for _, e := range entries {
				k.put(e)
			}
			if !c.All {
				k.set("current-context", entries[0].context)
			}
		})
	})
	if err != nil {
		return err
	}
	for _, e := range entries {
		fmt.Fprintf(p.stdout, "Logged into Kubernetes cluster %q. Try 'kubectl --context=%s version' to test the connection.\n", e.kube, e.context)
	}
	p.warnEnded(cred, "kubectl", "sally proxy kube "+names[0])
	return nil
}

// entries are what the kubeconfig gets: straight to the gateway's one port,
// with the name that leads to the cluster in the handshake.
func (c *kubeLoginCmd) entries(p *program, cred *credentials, names []string) ([]kubeEntry, error) {
	f := cred.Profile
	cas, err := os.ReadFile(p.home.CAsPath(f))
	if err != nil {
		return nil, err
	}
	var out []kubeEntry
	for _, name := range names {
		e := kubeEntry{
			kube: name, name: kubeContextName(f, name), context: kubeContextName(f, name), namespace: c.Namespace,
			server: "https://" + f.WebProxyAddr, serverName: kubeServerName(f, name), cas: cas,
			command: p.self, args: kubeArgs(f, name),
		}
		if c.Context != "" {
			e.context = strings.NewReplacer("{{.ClusterName}}", f.Cluster, "{{.KubeName}}", name).Replace(c.Context)
		}
		if fail.Clean(e.context) != e.context {
			return nil, problem(errInvalid, "the context's name has characters that are not allowed", "--set-context-name")
		}
		for _, v := range []string{"SALLY_HOME", "TELEPORT_HOME"} {
			if dir := os.Getenv(v); dir != "" {
				if abs, err := filepath.Abs(dir); err == nil {
					e.env = append(e.env, [2]string{v, abs})
				}
			}
		}
		out = append(out, e)
	}
	return out, nil
}

func kubeArgs(f profile.Profile, name string) []string {
	return []string{"kube", "credentials", "--kube-cluster=" + name, "--teleport-cluster=" + f.Cluster, "--proxy=" + f.WebProxyAddr}
}

type kubeCredentialsCmd struct {
	Kube    string `name:"kube-cluster" required:"" placeholder:"NAME" help:"Name of the Kubernetes cluster."`
	Cluster string `name:"teleport-cluster" placeholder:"NAME" help:"Name of the cluster."`
}

// execCredential is client.authentication.k8s.io/v1, ExecCredential.
type execCredential struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Interactive bool `json:"interactive"`
	} `json:"spec"`
	Status execStatus `json:"status"`
}

type execStatus struct {
	Expires string `json:"expirationTimestamp"`
	Cert    string `json:"clientCertificateData"`
	Key     string `json:"clientKeyData"`
}

// early is how long before its end a certificate is no longer given out: a
// command that starts with it gets its answer.
const early = time.Minute

// Run prints the login's own certificate from the disk: auth is not asked.
func (c *kubeCredentialsCmd) Run(p *program) error {
	cred, err := p.loadValid()
	if err != nil {
		return err
	}
	if c.Cluster != "" && c.Cluster != cred.Profile.Cluster {
		return problem(sallyport.ErrUnauthorized, fmt.Sprintf("you are logged in to %s, not to %s", cred.Profile.Cluster, c.Cluster), "sally login --proxy="+cred.Profile.WebProxyAddr)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cred.TLS.PrivateKey) // not that of a login since
	if err != nil {
		return err
	}
	var chain strings.Builder
	for _, der := range cred.TLS.Certificate {
		chain.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	out := execCredential{APIVersion: execVersion(os.Getenv("KUBERNETES_EXEC_INFO")), Kind: "ExecCredential"}
	out.Status = execStatus{
		Expires: cred.Identity.NotAfter.Add(-early).UTC().Format(time.RFC3339), Cert: chain.String(),
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	}
	return output.Write(p.stdout, "json", out)
}

// execVersion is the version that kubectl asks for.
func execVersion(info string) string {
	const v1, beta = "client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"
	var asked struct {
		APIVersion string `json:"apiVersion"`
	}
	if json.Unmarshal([]byte(info), &asked) == nil && asked.APIVersion == beta {
		return beta
	}
	return v1
}
