package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/kube"
)

// kubeManifests: three namespaces with a pod each, a node that kwok keeps, and the
// rights of the agent and of the groups that roles give.
const kubeManifests = `
apiVersion: v1
kind: Node
metadata: {name: n1, annotations: {kwok.x-k8s.io/node: fake}}
spec: {}
---
apiVersion: v1
kind: Namespace
metadata: {name: dev}
---
apiVersion: v1
kind: Namespace
metadata: {name: shared}
---
apiVersion: v1
kind: Namespace
metadata: {name: prod}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: dev}
spec: {nodeName: n1, containers: [{name: main, image: fake}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cache, namespace: shared}
spec: {nodeName: n1, containers: [{name: main, image: fake}]}
---
apiVersion: v1
kind: Pod
metadata: {name: vault, namespace: prod}
spec: {nodeName: n1, containers: [{name: main, image: fake}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: impersonator}
rules: [{apiGroups: [""], resources: [users, groups], verbs: [impersonate]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: impersonator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: impersonator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: sallyport-agent}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: devs}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: devs}]
`

// kubectlRole: everything in one namespace, to look only in another, and nothing
// in a third.
const kubectlRole = `kind: role
version: v7
metadata: {name: dev}
spec:
  allow:
    kubernetes_labels: {env: test}
    kubernetes_groups: [devs]
    kubernetes_resources:
      - {kind: '*', namespace: dev, name: '*', verbs: ['*']}
      - {kind: '*', namespace: shared, name: '*', verbs: [get, list, watch]}
`

// kubeStubs is what kwok does where kubelets run containers. It does not end a
// command's input: tar is told not to wait for more than the archive's end.
func kubeStubs(logs, port string) string {
	return fmt.Sprintf(`apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector: {matchExpressions: [{key: .status.phase, operator: NotIn, values: [Running]}]}
  next:
    statusTemplate: |
      addresses: [{address: {{ NodeIP | Quote }}, type: InternalIP}]
      daemonEndpoints: {kubeletEndpoint: {Port: {{ NodePort }} }}
      phase: Running
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector: {matchExpressions: [{key: .status.phase, operator: NotIn, values: [Running]}]}
  next:
    statusTemplate: |
      phase: Running
      conditions: [{type: Ready, status: "True"}]
      containerStatuses: [{name: main, image: fake, imageID: "", ready: true, restartCount: 0, state: {running: {startedAt: "2026-01-01T00:00:00Z"}}}]
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterExec
metadata: {name: all}
spec: {execs: [{local: {envs: [{name: TAR_OPTIONS, value: --blocking-factor=1}]}}]}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterLogs
metadata: {name: all}
spec: {logs: [{logsFile: %q, follow: true}]}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterAttach
metadata: {name: all}
spec: {attaches: [{logsFile: %q}]}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterPortForward
metadata: {name: all}
spec: {forwards: [{target: {port: %s, address: 127.0.0.1}}]}
`, logs, logs, port)
}

// TestKube is kubectl against a real API server, through gateway and agent.
func TestKube(t *testing.T) {
	bin := kubePrograms(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "from the pod") }))
	defer web.Close()
	_, webPort, _ := net.SplitHostPort(web.Listener.Addr().String())
	logs := &podLog{t: t, path: filepath.Join(shortDir(t), "pod.log")}
	logs.line("first line")
	real, err := kube.Start(t.Context(), shortDir(t), kubeStubs(logs.path, webPort), kubeManifests)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(real.Stop)

	p := newPerson(t)
	c := startCluster(t, p, func(c *cluster) string {
		return fmt.Sprintf("  kubernetes: [{name: prod, kubeconfig: %q, labels: {env: test}}]\n", real.Agent)
	}, func(c *cluster) string { return c.gateway })
	c.admin(p, "create", c.write("dev.yaml", kubectlRole))
	c.userWith(p, "ann", "dev")
	await(t, "the cluster online", upWait, func() bool {
		r := p.try("", "sally", "kube", "ls", "-f", "json")
		return r.code == 0 && strings.Contains(r.stdout, `"prod"`)
	})
	p.run("sally", "kube", "login", "prod", "-n", "dev")
	k := &kubectl{p: p, bin: filepath.Join(bin, "kubectl")}
	await(t, "the pod running", upWait, func() bool {
		return k.run(t, "get", "pod", "web", "-o", "jsonpath={.status.phase}") == "Running"
	})

	t.Run("get", k.get)
	t.Run("pages", func(t *testing.T) { k.pages(t, real) })
	t.Run("denials", k.denials)
	t.Run("apply", k.apply)
	t.Run("watch", func(t *testing.T) { k.watch(t, real) })
	t.Run("logs", func(t *testing.T) { k.logs(t, logs) })
	for name, k := range map[string]*kubectl{"WebSocket": k.streaming("true"), "SPDY": k.streaming("false")} {
		t.Run("streams by "+name, k.streams)
		t.Run("attach by "+name, func(t *testing.T) { k.attach(t, logs) })
		t.Run("port-forward by "+name, k.portForward)
		t.Run("denied streams by "+name, k.deniedStreams)
	}
	t.Run("local proxy", k.localProxy)
	t.Run("audit", func(t *testing.T) { k.audit(t, c) })
	t.Run("lock", func(t *testing.T) { k.lock(t, c) })
}

// buildWait is how long the programs may take on a machine that has nothing of
// them and other things to do.
const buildWait = 20 * time.Minute

// kubePrograms are where they have been built. Where CI is set they are built
// beside the tests, and may not be there yet.
func kubePrograms(t *testing.T) string {
	t.Helper()
	if bin, err := kube.Find(); err == nil {
		return bin
	}
	if os.Getenv("CI") == "" {
		peers.Missing(t, "kube-apiserver (tools/peers/kubernetes)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), buildWait)
	defer cancel()
	bin, err := kube.Build(ctx, "../../tools/peers/kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// podLog is what containers print, as their runtime writes it.
type podLog struct {
	t    *testing.T
	path string
}

func (l *podLog) line(text string) {
	l.t.Helper()
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), text); err != nil {
		l.t.Fatal(err)
	}
}

// kubectl is a person's.
type kubectl struct {
	p   *person
	bin string
}

// streaming is kubectl that opens streams by WebSocket first, or by SPDY alone.
func (k *kubectl) streaming(websocket string) *kubectl {
	return k.with("KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+websocket, "KUBECTL_PORT_FORWARD_WEBSOCKETS="+websocket)
}

func (k *kubectl) with(env ...string) *kubectl {
	p := *k.p
	p.extra = slices.Concat(p.extra, env)
	return &kubectl{p: &p, bin: k.bin}
}

func (k *kubectl) try(input string, args ...string) result {
	k.p.t.Helper()
	return k.p.try(input, k.bin, args...)
}

// feed is try with an input that goes on until kubectl ends. Servers of Kubernetes
// close when a command has ended: the end of its input, still on its way, would meet a
// closed connection, and the system answers that with a reset, which drops what was
// sent and not read yet.
func (k *kubectl) feed(t *testing.T, input string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	cmd := k.p.command(ctx, k.bin, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, written := io.WriteString(in, input)
	if err := cmd.Wait(); err != nil || written != nil {
		t.Logf("kubectl %v: %v, its input: %v", args, err, written)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func (k *kubectl) run(t *testing.T, args ...string) string {
	t.Helper()
	r := k.try("", args...)
	if r.code != 0 {
		t.Fatalf("kubectl %v: exit %d\n%s%s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// beside starts kubectl, which is killed with the test.
func (k *kubectl) beside(t *testing.T, args ...string) *besides {
	t.Helper()
	b := &besides{cmd: k.p.command(context.Background(), k.bin, args...), out: &tail{}, done: make(chan struct{})}
	b.cmd.Stdout, b.cmd.Stderr = b.out, b.out
	var err error
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		b.cmd.Wait()
		close(b.done)
	}()
	t.Cleanup(func() {
		b.cmd.Process.Kill()
		<-b.done
		if t.Failed() {
			t.Logf("kubectl %v said:\n%s", args, b.out)
		}
	})
	return b
}

// besides is a command that runs beside the test.
type besides struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *tail
	done chan struct{}
}

// until waits for something that kubectl prints; one that has ended says no more.
func (b *besides) until(t *testing.T, what string, holds func(said string) bool) {
	t.Helper()
	ended := false
	await(t, what, runWait, func() bool {
		if holds(b.out.String()) {
			return true
		}
		if ended {
			t.Fatalf("%s: kubectl has ended: %v", what, b.cmd.ProcessState)
		}
		select {
		case <-b.done:
			ended = true // and is looked at once more
		default:
		}
		return false
	})
}

// says waits for a word.
func (b *besides) says(t *testing.T, word string) {
	t.Helper()
	b.until(t, fmt.Sprintf("%q", word), func(said string) bool { return strings.Contains(said, word) })
}

func (k *kubectl) get(t *testing.T) {
	for _, form := range []string{"wide", "json", "yaml", "name"} {
		out := k.run(t, "get", "pods", "-A", "-o", form)
		if !strings.Contains(out, "web") || !strings.Contains(out, "cache") || strings.Contains(out, "vault") {
			t.Errorf("all pods, -o %s:\n%s", form, out)
		}
	}
	if out := k.run(t, "get", "pod", "web", "-o", "jsonpath={.metadata.namespace}"); out != "dev" {
		t.Errorf("one pod: %q", out)
	}
	if out := k.run(t, "describe", "pod", "web"); !strings.Contains(out, "n1") {
		t.Errorf("describe:\n%s", out)
	}
	if out := k.run(t, "auth", "whoami", "-o", "json"); !strings.Contains(out, `"ann"`) || !strings.Contains(out, `"devs"`) {
		t.Errorf("who am I:\n%s", out)
	}
	// The headers are dropped: they change nothing.
	out := k.run(t, "auth", "whoami", "--as=root", "--as-group=system:masters", "--as-uid=1", "--as-user-extra=a=b", "-o", "json")
	if !strings.Contains(out, `"ann"`) || strings.Contains(out, "root") || strings.Contains(out, "masters") || strings.Contains(out, `"a"`) {
		t.Errorf("A120: who am I as somebody else:\n%s", out)
	}
}

// pages: a list of which not all is to be seen comes whole, and none that began for
// somebody else goes on: where a page ends is the name of an object.
func (k *kubectl) pages(t *testing.T, real *kube.Cluster) {
	const list = "/api/v1/pods?limit=1"
	if out := k.run(t, "get", "pods", "-A", "--chunk-size=1", "-o", "name"); !strings.Contains(out, "web") || !strings.Contains(out, "cache") || strings.Contains(out, "vault") {
		t.Errorf("in pages:\n%s", out)
	}
	type page struct {
		Metadata struct{ Continue string }
		Items    []json.RawMessage
	}
	pageOf := func(text string) (p page) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return p
	}
	for _, more := range []string{"", "&resourceVersion=0"} { // of the store, and of the server's cache
		if p := pageOf(k.run(t, "get", "--raw", list+more)); p.Metadata.Continue != "" || len(p.Items) < 2 {
			t.Errorf("%d objects, and the rest at %q", len(p.Items), p.Metadata.Continue)
		}
	}
	text, err := real.Kubectl(t.Context(), "", "get", "--raw", list)
	if err != nil {
		t.Fatal(err)
	}
	begun := pageOf(string(text))
	if begun.Metadata.Continue == "" {
		t.Fatal("the API server gives no pages")
	}
	if r := k.try("", "get", "--raw", list+"&continue="+begun.Metadata.Continue); r.code == 0 || !strings.Contains(r.stderr, "(Expired)") {
		t.Errorf("the rest of a list: %+v", r)
	}
}

// denials are what kubectl prints as the API server's own.
func (k *kubectl) denials(t *testing.T) {
	for _, args := range [][]string{
		{"get", "pod", "vault", "-n", "prod"}, {"get", "pods", "-n", "prod"}, {"delete", "pod", "vault", "-n", "prod"}, {"logs", "vault", "-n", "prod"},
		{"exec", "vault", "-n", "prod", "--", "true"}, {"port-forward", "vault", "-n", "prod", ":80"}, {"delete", "pod", "cache", "-n", "shared"},
		{"get", "--raw", "/metrics"}, {"get", "--raw", "/api/v1/nodes/n1/proxy/pods"},
	} {
		r := k.try("", args...)
		if r.code == 0 || !strings.Contains(r.stderr, `Error from server (Forbidden): `) || !strings.Contains(r.stderr, `Kubernetes cluster prod: no role of "ann" allows to`) {
			t.Errorf("kubectl %v: exit %d\n%s%s", args, r.code, r.stdout, r.stderr)
		}
	}
}

// deniedStreams may look at a pod and not run anything in it.
func (k *kubectl) deniedStreams(t *testing.T) {
	for _, args := range [][]string{
		{"exec", "cache", "-n", "shared", "--", "true"}, {"attach", "cache", "-n", "shared"}, {"port-forward", "cache", "-n", "shared", ":80"},
	} {
		if r := k.try("", args...); r.code == 0 || !strings.Contains(r.stderr, `no role of "ann" allows to`) {
			t.Errorf("kubectl %v: %+v", args, r)
		}
	}
}

func (k *kubectl) apply(t *testing.T) {
	const doc = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: %s}\ndata: {a: %q}\n"
	for _, v := range []string{"one", "two"} {
		if r := k.try(fmt.Sprintf(doc, "dev", v), "apply", "-f", "-"); r.code != 0 {
			t.Fatalf("apply: %s", r.stderr)
		}
		if out := k.run(t, "get", "configmap", "settings", "-o", "jsonpath={.data.a}"); out != v {
			t.Errorf("after applying %s: %q", v, out)
		}
	}
	for _, ns := range []string{"shared", "prod"} {
		if r := k.try(fmt.Sprintf(doc, ns, "x"), "apply", "-f", "-"); r.code == 0 || !strings.Contains(r.stderr, `no role of "ann" allows to`) {
			t.Errorf("apply in %s: %d %s", ns, r.code, r.stderr)
		}
	}
	k.run(t, "delete", "configmap", "settings")
}

// watch sees what happens where its person may look, and nothing else. Pods: a
// watch of nothing prints nothing, and cannot be told from one that hangs.
func (k *kubectl) watch(t *testing.T, real *kube.Cluster) {
	w := k.beside(t, "get", "pods", "-A", "--watch")
	w.says(t, "web")
	const doc = "apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s}\nspec: {nodeName: n1, containers: [{name: main, image: fake}]}\n"
	if _, err := real.Kubectl(t.Context(), fmt.Sprintf(doc, "hidden", "prod"), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if r := k.try(fmt.Sprintf(doc, "seen", "dev"), "apply", "-f", "-"); r.code != 0 {
		t.Fatalf("apply: %s", r.stderr)
	}
	w.says(t, "seen")
	if out := w.out.String(); strings.Contains(out, "hidden") || strings.Contains(out, "vault") {
		t.Error("the watch shows what is not to be seen")
	}
	k.run(t, "delete", "pod", "seen", "--wait=false", "--force", "--grace-period=0")
}

func (k *kubectl) logs(t *testing.T, file *podLog) {
	if out := k.run(t, "logs", "web"); !strings.Contains(out, "first line") {
		t.Errorf("logs:\n%s", out)
	}
	follow := k.beside(t, "logs", "-f", "web")
	follow.says(t, "first line")
	file.line("second line")
	follow.says(t, "second line")
}

// streams: bytes there and back, how a command ends, a terminal, and files. kwok
// passes no exit code on, only that there was one.
func (k *kubectl) streams(t *testing.T) {
	sent := strings.Repeat("0123456789abcdef", 3<<16) // 3 MiB
	if r := k.feed(t, sent, "exec", "-i", "web", "--", "head", "-c", fmt.Sprint(len(sent))); r.code != 0 || r.stdout != sent {
		t.Errorf("exec head: exit %d, %d of %d bytes\n%s", r.code, len(r.stdout), len(sent), r.stderr)
	}
	r := k.try("", "exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
	if r.code == 0 || r.stdout != "out\n" || !strings.HasPrefix(r.stderr, "err\n") || !strings.Contains(r.stderr, "exit status 7") {
		t.Errorf("exec sh: %+v", r)
	}
	// script gives kubectl a terminal.
	terminal := &kubectl{p: k.p, bin: "script"}
	terminal.beside(t, "-qec", k.bin+" exec -it web -- sh -c 'test -t 0 && echo on a terminal; sleep 300'", "/dev/null").says(t, "on a terminal")
	dir := shortDir(t)
	from, there, back := filepath.Join(dir, "from"), filepath.Join(dir, "there"), filepath.Join(dir, "back")
	if err := os.WriteFile(from, []byte(sent), 0o600); err != nil {
		t.Fatal(err)
	}
	k.run(t, "cp", from, "web:"+there)
	k.run(t, "cp", "web:"+there, back)
	if b, err := os.ReadFile(back); err != nil || string(b) != sent {
		t.Errorf("after cp there and back: %d bytes, %v", len(b), err)
	}
}

// attach shows what is printed from then on.
func (k *kubectl) attach(t *testing.T, file *podLog) {
	k.beside(t, "attach", "web").until(t, "attach", func(said string) bool {
		file.line("from the container")
		return strings.Contains(said, "from the container")
	})
}

func (k *kubectl) portForward(t *testing.T) {
	var addr string
	k.beside(t, "port-forward", "web", ":80").until(t, "the port", func(said string) (ok bool) {
		_, said, _ = strings.Cut(said, "Forwarding from ")
		addr, _, ok = strings.Cut(said, " ")
		return ok
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: runWait}
	for range 3 {
		resp, err := client.Get("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "from the pod" {
			t.Errorf("%q", b)
		}
	}
}

// localProxy is the way of programs that run no credential plugin.
func (k *kubectl) localProxy(t *testing.T) {
	proxy := k.p.command(context.Background(), "sally", "proxy", "kube", "prod", "-n", "dev")
	out := &tail{}
	proxy.Stdout, proxy.Stderr = out, out
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		proxy.Process.Signal(os.Interrupt)
		proxy.Wait()
	})
	var file string
	await(t, "the local proxy", runWait, func() bool {
		_, rest, _ := strings.Cut(out.String(), "KUBECONFIG=")
		name, _, ok := strings.Cut(rest, "\n")
		file = strings.Trim(name, "'")
		return ok
	})
	for _, websocket := range []string{"true", "false"} {
		local := k.streaming(websocket).with("KUBECONFIG=" + file)
		if out := local.run(t, "get", "pods", "-A", "-o", "name"); out != "pod/web\npod/cache\n" {
			t.Errorf("all pods: %q", out)
		}
		if out := local.run(t, "exec", "web", "--", "echo", "out"); out != "out\n" {
			t.Errorf("exec: %q", out)
		}
	}
}

// audit: one event for each request, and a session for each stream.
func (k *kubectl) audit(t *testing.T, c *cluster) {
	if r := k.try("", "get", "--raw", "/api/v1/namespaces/dev/pods/nobody"); r.code == 0 || !strings.Contains(r.stderr, "Error from server (NotFound)") {
		t.Errorf("a pod that is not there: %+v", r)
	}
	type event struct {
		Event   string   `json:"event"`
		User    string   `json:"user"`
		Path    string   `json:"request_path"`
		Code    int      `json:"response_code"`
		Success bool     `json:"success"`
		Command []string `json:"initial_command"`
		Pod     string   `json:"kubernetes_pod_name"`
		Session string   `json:"sid"`
	}
	var all []event
	count := func(is func(event) bool) (n int) {
		for _, e := range all {
			if e.User == "ann" && is(e) {
				n++
			}
		}
		return n
	}
	missing := func(e event) bool { return e.Event == "kube.request" && strings.HasSuffix(e.Path, "/nobody") }
	exec := func(e event) bool {
		return e.Event == "session.start" && e.Pod == "web" && len(e.Command) == 3 && e.Command[0] == "head" && e.Session != ""
	}
	await(t, "the events", upWait, func() bool {
		all = nil
		for line := range strings.Lines(c.admin(k.p, "audit", "search", "--limit=10000")) {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			all = append(all, e)
		}
		return count(missing) > 0 && !slices.ContainsFunc(all, func(e event) bool {
			return exec(e) && count(func(end event) bool { return end.Event == "session.end" && end.Session == e.Session }) == 0
		})
	})
	if n := count(missing); n != 1 {
		t.Errorf("one request is %d events", n)
	}
	if n := count(func(e event) bool { return missing(e) && e.Code == http.StatusNotFound && !e.Success }); n != 1 {
		t.Errorf("its answer is not in the event")
	}
	denied := func(e event) bool {
		return e.Event == "kube.request" && e.Path == "/api/v1/namespaces/prod/pods/vault" && e.Code == http.StatusForbidden && !e.Success
	}
	if count(denied) == 0 {
		t.Error("no denial")
	}
	if n := count(exec); n != 2 {
		t.Errorf("two times exec head are %d sessions", n)
	}
	for _, e := range all {
		if exec(e) && count(func(end event) bool { return end.Event == "session.end" && end.Session == e.Session }) != 1 {
			t.Errorf("session %s does not end", e.Session)
		}
	}
	if n := count(func(e event) bool { return e.Event == "port" && e.Pod == "web" }); n != 2 {
		t.Errorf("two port-forwards are %d events", n)
	}
	if count(func(e event) bool { return e.Event == "session.connect" }) == 0 {
		t.Error("no connection")
	}
}

// lock: a watch and a command that run end, and kubectl is told why.
func (k *kubectl) lock(t *testing.T, c *cluster) {
	watch := k.beside(t, "get", "pods", "--watch")
	watch.says(t, "web")
	shell := k.beside(t, "exec", "-i", "web", "--", "cat")
	io.WriteString(shell.in, "hello\n")
	shell.says(t, "hello")
	c.admin(k.p, "create", c.write("lock.yaml", "kind: lock\nversion: v2\nmetadata: {name: stop}\nspec: {target: {user: ann}, message: for the test}\n"))
	for what, b := range map[string]*besides{"watch": watch, "exec": shell} {
		select {
		case <-b.done:
		case <-time.After(runWait):
			t.Errorf("the %s goes on after the lock", what)
		}
	}
	if said := watch.out.String(); !strings.Contains(said, "for the test") || strings.Contains(said, "stream error") {
		t.Errorf("the watch said of its end: %s", said)
	}
	if r := k.try("", "get", "pods"); r.code == 0 || !strings.Contains(r.stderr, "Error from server (Forbidden): ") || !strings.Contains(r.stderr, "for the test") {
		t.Errorf("after the lock: %+v", r)
	}
}
