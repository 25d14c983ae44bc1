package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

// kubeRole lets its holders do everything in one namespace, and be two roles of AWS.
const kubeRole = `kind: role
version: v7
metadata: {name: dev}
spec:
  allow:
    kubernetes_labels: {env: test}
    kubernetes_groups: [devs]
    kubernetes_resources: [{kind: '*', namespace: dev, name: '*', verbs: ['*']}]
    app_labels: {env: test}
    aws_role_arns: ['arn:aws:iam::123456789012:role/reader', 'arn:aws:iam::123456789012:role/local']
`

// kubeStub is an API server that tells who it was asked as.
func kubeStub(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.Header.Get("Authorization") != "Bearer agent-token" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	switch r.URL.Path {
	case "/api/v1/pods":
		io.WriteString(w, `{"kind":"PodList","items":[{"metadata":{"name":"web","namespace":"dev"}},{"metadata":{"name":"db","namespace":"prod"}}]}`)
	default:
		json.NewEncoder(w).Encode(map[string]any{"user": r.Header["Impersonate-User"], "groups": r.Header["Impersonate-Group"], "path": r.URL.Path, "proto": r.Proto})
	}
}

// startKubeStub returns a kubeconfig for the agent.
func startKubeStub(t testing.TB, dir string) string {
	t.Helper()
	api := httptest.NewUnstartedServer(http.HandlerFunc(kubeStub))
	api.EnableHTTP2 = true
	api.StartTLS()
	t.Cleanup(api.Close)
	files := map[string]string{
		"ca.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})),
		"config": fmt.Sprintf("current-context: c\nclusters: [{name: c, cluster: {server: %q, certificate-authority: ca.pem, tls-server-name: example.com}}]\n"+
			"users: [{name: u, user: {token: agent-token}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n", api.URL),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config")
}

// kubeconfigFile is what a client reads.
type kubeconfigFile struct {
	Current  string `yaml:"current-context"`
	Clusters []struct {
		Cluster struct {
			Server     string
			ServerName string `yaml:"tls-server-name"`
			CA         string `yaml:"certificate-authority-data"`
		}
	}
	Users []struct {
		User struct {
			Cert string `yaml:"client-certificate-data"`
			Key  string `yaml:"client-key-data"`
			Exec struct {
				Command string
				Args    []string
			}
		}
	}
}

// kubeClient is an HTTP client as the file says.
func (p *person) kubeClient(file string) (*http.Client, string) {
	p.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	var k kubeconfigFile
	if err := yaml.Unmarshal(b, &k); err != nil {
		p.t.Fatal(err)
	}
	cluster, user := k.Clusters[0].Cluster, k.Users[0].User
	if user.Exec.Command != "" {
		var c struct {
			Status struct{ ClientCertificateData, ClientKeyData string }
		}
		if err := json.Unmarshal([]byte(p.run(user.Exec.Command, user.Exec.Args...)), &c); err != nil {
			p.t.Fatal(err)
		}
		user.Cert, user.Key = base64.StdEncoding.EncodeToString([]byte(c.Status.ClientCertificateData)), base64.StdEncoding.EncodeToString([]byte(c.Status.ClientKeyData))
	}
	decode := func(text string) []byte {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			p.t.Fatal(err)
		}
		return b
	}
	pair, err := tls.X509KeyPair(decode(user.Cert), decode(user.Key))
	if err != nil {
		p.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(decode(cluster.CA))
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: cluster.ServerName, Certificates: []tls.Certificate{pair}}}
	p.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: runWait}, cluster.Server
}

// kubeProxy is kubeClient by a local proxy.
func (p *person) kubeProxy(name string) (*http.Client, string) {
	p.t.Helper()
	proxy := p.command(context.Background(), "sally", "proxy", "kube", name)
	out := &tail{}
	proxy.Stdout, proxy.Stderr = out, out
	if err := proxy.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		proxy.Process.Signal(os.Interrupt)
		proxy.Wait()
	})
	var file string
	await(p.t, "the local proxy", runWait, func() bool {
		_, rest, ok := strings.Cut(out.String(), "KUBECONFIG=")
		file, _, _ = strings.Cut(rest, "\n")
		return ok && strings.Contains(rest, "\n")
	})
	return p.kubeClient(strings.Trim(file, "'"))
}

func kubeGet(t testing.TB, c *http.Client, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Impersonate-User", "root")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestKubeLogin: what a login writes leads through gateway and agent to the API
// server, straight and by a local proxy; roles decide, and a lock ends it. The same agent
// serves AWS.
func TestKubeLogin(t *testing.T) {
	p := newPerson(t)
	config := startKubeStub(t, shortDir(t))
	cloud := startAWS(t)
	c := startCluster(t, p, func(*cluster) string {
		return fmt.Sprintf("  kubernetes: [{name: prod, kubeconfig: %q, labels: {env: test}}]\n", config) + cloud.apps()
	}, func(c *cluster) string { return c.gateway })
	c.admin(p, "create", c.write("dev.yaml", kubeRole))
	c.userWith(p, "ann", "dev")
	await(t, "the cluster online", upWait, func() bool {
		r := p.try("", "sally", "kube", "ls", "-f", "json")
		return r.code == 0 && strings.Contains(r.stdout, `"kube_cluster_name": "prod"`)
	})
	p.run("sally", "kube", "login", "prod")
	if out := p.run("sally", "kube", "ls", "-f", "json"); !strings.Contains(out, `"selected": true`) {
		t.Errorf("after the login: %s", out)
	}
	straight, server := p.kubeClient(filepath.Join(p.home, ".kube", "config"))
	if server != "https://"+c.gateway {
		t.Errorf("the server is %s", server)
	}

	local, localServer := p.kubeProxy("prod")

	for name, client := range map[string]*http.Client{"straight": straight, "by the proxy": local} {
		server := map[bool]string{true: server, false: localServer}[name == "straight"]
		if code, body := kubeGet(t, client, server+"/api/v1/namespaces/dev/pods/web"); code != 200 || !strings.Contains(body, `"user":["ann"]`) || !strings.Contains(body, `"groups":["devs"]`) || !strings.Contains(body, "HTTP/2.0") {
			t.Errorf("%s: %d %s", name, code, body)
		}
		if code, body := kubeGet(t, client, server+"/api/v1/pods"); code != 200 || !strings.Contains(body, "web") || strings.Contains(body, "db") {
			t.Errorf("%s: list: %d %s", name, code, body)
		}
		if code, body := kubeGet(t, client, server+"/api/v1/namespaces/prod/pods/db"); code != 403 || !strings.Contains(body, `no role of \"ann\" allows to get pods \"db\" in namespace \"prod\"`) {
			t.Errorf("%s: denial: %d %s", name, code, body)
		}
	}
	t.Run("aws", func(t *testing.T) { testAWS(t, c, p, cloud) })
	await(t, "the events", upWait, func() bool {
		r := p.try("", "sallyctl", "--data-dir="+c.path("auth"), "audit", "search", "--event=kube.request,session.connect", "--limit=1000")
		return r.code == 0 && strings.Count(r.stdout, "kube.request") >= 6 && strings.Contains(r.stdout, "session.connect")
	})
	if n := os.Getenv("SALLYPORT_E2E_KUBE_RATE"); n != "" {
		kubeRate(t, straight, server)
	}
}

// kubeRate tells how many requests pass in a second; it judges nothing.
func kubeRate(t *testing.T, c *http.Client, server string) {
	for _, kept := range []bool{true, false} {
		client := *c
		tr := c.Transport.(*http.Transport).Clone()
		tr.DisableKeepAlives = !kept
		client.Transport = tr
		done := make(chan int)
		until := time.Now().Add(5 * time.Second)
		for range 8 {
			go func() {
				n := 0
				for ; time.Now().Before(until); n++ {
					resp, err := client.Get(server + "/api/v1/namespaces/dev/pods/web")
					if err != nil {
						t.Error(err)
						break
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				done <- n
			}()
		}
		sum := 0
		for range 8 {
			sum += <-done
		}
		t.Logf("kept %v: %d requests a second", kept, sum/5)
		tr.CloseIdleConnections()
	}
}

// userWith makes somebody with a role, and logs in.
func (c *cluster) userWith(p *person, name, role string) {
	c.t.Helper()
	var link struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal([]byte(c.admin(p, "users", "add", "--roles="+role, "--format=json", name)), &link); err != nil {
		c.t.Fatal(err)
	}
	const password = "a long enough password"
	claim(c.t, strings.Replace(link.URL, "https://"+clusterName, "https://127.0.0.1", 1), password)
	p.loginAs(c.gateway, c.pin, name, password, "")
}
