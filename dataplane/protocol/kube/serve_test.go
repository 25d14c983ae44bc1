package kube

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/eventtext"
	"github.com/sallyport/sallyport/test/deaf"
)

// TestA120_Impersonation: over both versions of HTTP the API server hears of
// the principals that roles give, and of nobody whom the client names.
func TestA120_Impersonation(t *testing.T) {
	seen := make(chan http.Header, 1)
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		seen <- hr.Header.Clone()
		io.WriteString(w, "{}")
	})
	r.roles(func(sallyport.KubeRequest) sallyport.KubeAnswer {
		return sallyport.KubeAnswer{Allowed: true, Groups: []string{"dev", "ops", masters}}
	})
	evil := http.Header{"Impersonate-User": {"admin"}, "impersonate-group": {masters}, "Impersonate_group": {masters}, "Impersonate-Extra-Scopes": {"x"},
		"Authorization": {"Bearer evil"}, "X-Remote-User": {"admin"}, "Cookie": {"a=b"}}
	for _, protocol := range []string{"h2", "http/1.1"} {
		res, body := do(t, r.client(protocol), "GET", "/api/v1/namespaces/a/pods/b", evil, nil)
		if res.StatusCode != 200 {
			t.Fatalf("%s: %d %s", protocol, res.StatusCode, body)
		}
		h := <-seen
		for name, want := range map[string][]string{"Impersonate-User": {"kate"}, "Impersonate-Group": {"dev", "ops"}, "Authorization": {"Bearer agents-own-token"}} {
			if !slices.Equal(h[name], want) {
				t.Errorf("%s: %s is %q, want %q", protocol, name, h[name], want)
			}
		}
		for name, v := range h {
			if strings.HasPrefix(strings.ToLower(name), "impersonate") && name != "Impersonate-User" && name != "Impersonate-Group" || name == "Cookie" || name == "X-Remote-User" || name == "X-Forwarded-For" {
				t.Errorf("%s: %s: %q is passed on", protocol, name, v)
			}
		}
	}
}

// TestA120_Trailers: names that may not be in a request's head passed behind its body.
func TestA120_Trailers(t *testing.T) {
	seen := make(chan http.Header, 1)
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		io.Copy(io.Discard, hr.Body)
		seen <- hr.Trailer
		io.WriteString(w, "{}")
	})
	for _, protocol := range []string{"h2", "http/1.1"} {
		req, err := http.NewRequest("POST", "http://kube/api/v1/namespaces/a/pods", io.MultiReader(strings.NewReader("{}")))
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"Impersonate-Group": {masters}}
		res, err := r.client(protocol).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if h := <-seen; len(h) > 0 {
			t.Errorf("%s: %v is passed on", protocol, h)
		}
	}
}

// TestDenials are Status objects, whose message kubectl prints.
func TestDenials(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) { t.Error("a denied request is passed on") })
	for _, tt := range []struct {
		method, path string
		answer       sallyport.KubeAnswer
		code         int
		says         string
	}{
		{"GET", "/api/v1/namespaces/a/secrets/b", sallyport.KubeAnswer{Reason: "no role allows it"}, 403, "Kubernetes cluster prod: no role allows it"},
		{"GET", "/api/v1/namespaces/a/secrets/b", sallyport.KubeAnswer{Allowed: true}, 403, "no user and no group"},
		{"GET", "/api/v1/namespaces/a/secrets/b", sallyport.KubeAnswer{Allowed: true, Groups: []string{masters}}, 403, "no user and no group"},
		{"GET", "/api/v1/namespaces/a/secrets/b", sallyport.KubeAnswer{Allowed: true, Users: []string{"x", "y"}}, 403, "several Kubernetes users: x, y"},
		{"DELETE", "/api/v1/namespaces/a/secrets", sallyport.KubeAnswer{Allowed: true, Groups: []string{"g"}, Keep: onlyDev}, 403, "some secrets only"},
		{"GET", "/api/v1/namespaces/../secrets", sallyport.KubeAnswer{}, 400, "not in its plain form"},
		{"GET", "/api/v1/watch/secrets", sallyport.KubeAnswer{}, 400, "old paths"},
	} {
		r.roles(func(sallyport.KubeRequest) sallyport.KubeAnswer { return tt.answer })
		for _, protocol := range []string{"h2", "http/1.1"} {
			before := len(r.named("kube.request"))
			res, body := do(t, r.client(protocol), tt.method, tt.path, nil, nil)
			var s struct {
				Kind, APIVersion, Status, Message, Reason string
				Code                                      int
			}
			if err := json.Unmarshal([]byte(body), &s); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if res.StatusCode != tt.code || s.Code != tt.code || s.Kind != "Status" || s.APIVersion != "v1" || s.Status != "Failure" || s.Reason == "" || !strings.Contains(s.Message, tt.says) {
				t.Errorf("%s %s: %d %s", tt.method, tt.path, res.StatusCode, body)
			}
			events := r.named("kube.request")
			if len(events) != before+1 || *events[before].Success || events[before].Fields["response_code"] != int64(tt.code) {
				t.Errorf("%s %s: events %+v", tt.method, tt.path, events[before:])
			}
		}
	}
}

// TestRefused: a client that gets no session is told why, and gets nothing else.
func TestRefused(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) { t.Error("a refused request is passed on") })
	r.refusal = sallyport.Denied("user kate is locked: gone", "ask somebody")
	for _, protocol := range []string{"h2", "http/1.1"} {
		res, body := do(t, r.client(protocol), "GET", "/api", nil, nil)
		if res.StatusCode != 403 || !strings.Contains(body, "user kate is locked: gone (ask somebody)") {
			t.Errorf("%s: %d %s", protocol, res.StatusCode, body)
		}
	}
}

// TestUntyped: an answer without a type gets none on its way.
func TestUntyped(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		io.WriteString(w, "<html><script>1</script>")
	})
	for _, protocol := range []string{"h2", "http/1.1"} {
		res, body := do(t, r.client(protocol), "GET", "/api/v1/namespaces/n/services/s/proxy/x", nil, nil)
		if body != "<html><script>1</script>" || len(res.Header["Content-Type"]) != 0 {
			t.Errorf("%s: %q of type %q", protocol, body, res.Header["Content-Type"])
		}
	}
}

// TestEvents: each request is one event, with the status of its answer.
func TestEvents(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		if strings.HasSuffix(hr.URL.Path, "gone") {
			w.WriteHeader(404)
		}
		io.WriteString(w, "{}")
	})
	c := r.client("h2")
	do(t, c, "GET", "/apis/apps/v1/namespaces/a/deployments/web", nil, nil)
	do(t, c, "GET", "/api/v1/nodes/gone", nil, nil)
	events := r.named("kube.request")
	if len(events) != 2 || len(r.named("session.connect")) != 1 {
		t.Fatalf("%+v", events)
	}
	want := map[string]any{"verb": "GET", "request_path": "/apis/apps/v1/namespaces/a/deployments/web", "resource_api_group": "apps/v1", "resource_kind": "deployments",
		"resource_name": "web", "resource_namespace": "a", "kubernetes_cluster": "prod", "response_code": int64(200)}
	for k, v := range want {
		if events[0].Fields[k] != v {
			t.Errorf("%s is %v, want %v", k, events[0].Fields[k], v)
		}
	}
	if e := events[1]; *e.Success || e.Fields["response_code"] != int64(404) || e.Code != "T3009I" {
		t.Errorf("%+v", e)
	}
}

// TestProxiedIsRecorded: of a long path the end, which says what a program behind a
// proxy subresource is asked, was not recorded, and of a kubelet's query nothing:
// commands that it runs in pods stand there.
func TestProxiedIsRecorded(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) { io.WriteString(w, "{}") })
	c := r.client("h2")
	run := "/api/v1/nodes/n/proxy/run/a/" + strings.Repeat("b", 250) + "/c"
	search := "/api/v1/namespaces/a/services/s/proxy/" + strings.Repeat("b/", 50) + strings.Repeat("c", 250) + "/_delete_by_query"
	do(t, c, "POST", run+"?cmd=cat+/etc/shadow", nil, nil)
	do(t, c, "POST", search+"?token=secret", nil, nil)
	do(t, c, "POST", "/api/v1/nodes/n/proxy/run?cmd="+strings.Repeat("x", 3*maxSaid), nil, nil)
	do(t, c, "GET", "/api/v1/nodes/n?token=secret", nil, nil)
	events := r.named("kube.request")
	if len(events) != 4 {
		t.Fatalf("%+v", events)
	}
	for i, want := range []map[string]any{{"request_path": run, "request_query": "cmd=cat+/etc/shadow"}, {"request_path": search, "request_query": nil}} {
		for k, v := range want {
			if got := events[i].Fields[k]; got != v {
				t.Errorf("%s is %v, want %v", k, got, v)
			}
		}
	}
	if q := events[3].Fields["request_query"]; q != nil {
		t.Errorf("of a node: %v", q)
	}
	f := events[2].Fields
	if q, _ := f["request_query"].(string); len(q) != maxSaid+len("…") || f["request_query_size"] != int64(len("cmd=")+3*maxSaid) || f["request_query_sha256"] == nil {
		t.Errorf("%d bytes of a query, %v %v", len(q), f["request_query_size"], f["request_query_sha256"])
	}
}

// TestCommandIsRecorded: what stood behind 256 arguments, or behind what the log's line
// has no room for, was left out of a command, and nothing told which it was.
func TestCommandIsRecorded(t *testing.T) {
	r := newRig(t, echo)
	many := append(slices.Repeat([]string{"A=1"}, 300), "sh", "-c", "evil")
	long := []string{"sh", "-c", ": '" + strings.Repeat("\x01", 9000) + "'; evil"}
	for i, args := range [][]string{many, long} {
		conn, _ := r.dial("http/1.1")
		ask(t, conn, "POST", "/api/v1/namespaces/a/pods/b/exec?"+url.Values{"command": args}.Encode(), "SPDY/3.1", "")
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 101 {
			t.Fatalf("%v %+v", err, res)
		}
		f := r.named("session.start")[i].Fields
		said := f["initial_command"].([]string)
		if i == 0 {
			if !slices.Equal(said, args) || f["initial_command_truncated"] != nil {
				t.Errorf("%q", said)
			}
			continue
		}
		sum := sha256.Sum256([]byte(strings.Join(args, "\x00") + "\x00"))
		if len(said) != 3 || !strings.HasPrefix(args[2], strings.TrimSuffix(said[2], "…")) || f["initial_command_truncated"] != true ||
			f["initial_command_count"] != int64(3) || f["initial_command_sha256"] != hex.EncodeToString(sum[:]) {
			t.Errorf("%d, %v %v %v", len(said), f["initial_command_truncated"], f["initial_command_count"], f["initial_command_sha256"])
		}
		if _, size := eventtext.Fit(said[2], 1<<20); size > maxCommand+len("…") {
			t.Errorf("%d bytes of a line", size)
		}
	}
}

// TestBoundedCommand: as many arguments as a query holds are recorded, and no more than
// a line takes.
func TestBoundedCommand(t *testing.T) {
	most := maxQuery / len("command=&")
	if list, whole := bounded(make([]string, most)); !whole || len(list) != most {
		t.Errorf("%d arguments, whole: %v", len(list), whole)
	}
	if list, whole := bounded(make([]string, maxCommand)); whole || len(list) != maxCommand/len(`"",`)+1 {
		t.Errorf("%d arguments, whole: %v", len(list), whole)
	}
	if list, whole := bounded([]string{strings.Repeat("x", maxCommand), "y"}); whole || len(list) != 1 {
		t.Errorf("%d arguments, whole: %v", len(list), whole)
	}
}

// TestA147_Packed: what the API server has packed is passed as it is, and not unpacked
// here; it is not asked to pack what its client has not.
func TestA147_Packed(t *testing.T) {
	const packed = "no gzip, and nobody here looks"
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		if got := hr.Header["Accept-Encoding"]; len(got) > 0 {
			t.Errorf("%s: asked for %q", hr.URL.Path, got)
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(http.StatusBadRequest) // of a stream, no switch
		io.WriteString(w, packed)
	})
	for path, h := range map[string]http.Header{
		"/api/v1/namespaces/a/pods/b":      nil,
		"/api/v1/namespaces/a/pods/b/exec": {"Connection": {"Upgrade"}, "Upgrade": {"websocket"}},
	} {
		res, body := do(t, r.client("http/1.1"), "GET", path, h, nil)
		if got := res.Header.Get("Content-Encoding"); got != "gzip" || body != packed {
			t.Errorf("%s: %q in %q", path, body, got)
		}
	}
}

// TestFiltered: a narrowed list is asked for in JSON and filtered; a form that
// cannot be filtered reaches nobody.
func TestFiltered(t *testing.T) {
	form := "application/json"
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		if got := hr.Header.Get("Accept"); got != "application/json" || hr.Header.Get("Accept-Encoding") != "" {
			t.Errorf("asked for %q %q", got, hr.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Type", form)
		io.WriteString(w, `{"items":[`+podA+`,`+podB+`]}`)
	})
	r.roles(func(sallyport.KubeRequest) sallyport.KubeAnswer {
		return sallyport.KubeAnswer{Allowed: true, Groups: []string{"g"}, Keep: onlyDev}
	})
	accept := http.Header{"Accept": {"application/vnd.kubernetes.protobuf"}, "Accept-Encoding": {"gzip"}}
	if res, body := do(t, r.client("h2"), "GET", "/api/v1/pods", accept, nil); res.StatusCode != 200 || body != `{"items":[`+podA+`]}` {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	form = "application/vnd.kubernetes.protobuf"
	if res, body := do(t, r.client("h2"), "GET", "/api/v1/pods", accept, nil); res.StatusCode != 502 || strings.Contains(body, `"prod"`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// TestNarrowedPages: the continue token of a page names its last object. A narrowed
// list was asked for page by page, and told every name that it did not show.
func TestNarrowedPages(t *testing.T) {
	pages := &paged{names: []string{"a", "b", "shared", "z"}}
	r := newRig(t, pages.list)
	narrow := func(k keepFunc) {
		r.roles(func(sallyport.KubeRequest) sallyport.KubeAnswer {
			return sallyport.KubeAnswer{Allowed: true, Groups: []string{"g"}, Keep: k}
		})
	}
	c := r.client("h2")
	const path = "/api/v1/namespaces/prod/pods"
	_, first := do(t, c, "GET", path+"?limit=1", nil, nil)
	var page struct{ Metadata struct{ Continue string } }
	if err := json.Unmarshal([]byte(first), &page); err != nil || page.Metadata.Continue == "" {
		t.Fatalf("who may see all gets no pages: %s, %v", first, err)
	}
	narrow(onlyDev)
	for _, query := range []string{"?limit=1", "?limit=1&limit=2", "?limit=1&continue=", "?limit=500&resourceVersion=0"} {
		res, body := do(t, c, "GET", path+query, nil, nil)
		if res.StatusCode != 200 || !strings.Contains(body, `"shared"`) || strings.Contains(body, `"continue"`) || strings.Contains(body, `"name":"b"`) {
			t.Errorf("%s: %s %s", query, res.Status, body)
		}
	}
	for _, query := range []string{"?limit=1&continue=", "?continue=&continue=", "?continue="} {
		query += page.Metadata.Continue
		before := pages.asked.Load()
		res, body := do(t, c, "GET", path+query, nil, nil)
		var s status
		if err := json.Unmarshal([]byte(body), &s); err != nil || res.StatusCode != http.StatusGone || s.Code != http.StatusGone || s.Reason != "Expired" {
			t.Errorf("%s: %s %s", query, res.Status, body)
		}
		if pages.asked.Load() != before {
			t.Errorf("%s: passed on", query)
		}
	}
}

// paged is a collection that an API server gives in pages, as k8s.io/apiserver does.
type paged struct {
	names []string
	asked atomic.Int64
}

func (p *paged) list(w http.ResponseWriter, hr *http.Request) {
	p.asked.Add(1)
	q, from := hr.URL.Query(), ""
	if c := q.Get("continue"); c != "" {
		raw, err := base64.RawURLEncoding.DecodeString(c)
		var place struct{ Start string }
		if err != nil || json.Unmarshal(raw, &place) != nil {
			fail(w, http.StatusBadRequest, "continue", nil)
			return
		}
		from = strings.TrimSuffix(place.Start, "\x00")
	}
	limit, _ := strconv.Atoi(q.Get("limit"))
	var items []string
	meta := `{"resourceVersion":"7"}`
	for i, name := range p.names {
		if name <= from {
			continue
		}
		items = append(items, `{"metadata":{"name":"`+name+`","namespace":"prod"}}`)
		if left := len(p.names) - i - 1; len(items) == limit && left > 0 {
			place, _ := json.Marshal(map[string]any{"v": "meta.k8s.io/v1", "rv": 7, "start": name + "\x00"}) // strings and numbers only
			meta = fmt.Sprintf(`{"resourceVersion":"7","continue":%q,"remainingItemCount":%d}`, base64.RawURLEncoding.EncodeToString(place), left)
			break
		}
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"kind":"PodList","metadata":%s,"items":[%s]}`, meta, strings.Join(items, ","))
}

// TestWatch: events come as they happen, and a lock ends the watch.
func TestWatch(t *testing.T) {
	watches := make(chan chan string, 1) // each watch has its own events: the one before may not have heard yet that it ended
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		if hr.URL.Query().Get("watch") != "true" {
			t.Errorf("asked for %s", hr.URL)
		}
		next := make(chan string)
		watches <- next
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		for {
			select {
			case e := <-next:
				io.WriteString(w, e+"\n")
				w.(http.Flusher).Flush()
			case <-hr.Context().Done():
				return
			}
		}
	})
	for _, keep := range []func(string, string) bool{nil, onlyDev} {
		r.roles(func(sallyport.KubeRequest) sallyport.KubeAnswer {
			return sallyport.KubeAnswer{Allowed: true, Groups: []string{"g"}, Keep: keep}
		})
		for _, protocol := range []string{"h2", "http/1.1"} {
			res, err := r.client(protocol).Get("http://kube/api/v1/pods?watch=1")
			if err != nil {
				t.Fatal(err)
			}
			next, lines := <-watches, bufio.NewReader(res.Body)
			for i := range 3 {
				if keep != nil {
					next <- `{"type":"ADDED","object":` + podB + `}`
				}
				next <- `{"type":"ADDED","object":` + podA + `}`
				if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, `"dev"`) {
					t.Fatalf("%s, event %d: %q %v", protocol, i, line, err)
				}
			}
			r.lock()
			// The answer broke off, which clients take for a watch that has ended in order.
			var last struct {
				Type   string
				Object status
			}
			if line, err := lines.ReadString('\n'); err != nil || json.Unmarshal([]byte(line), &last) != nil {
				t.Errorf("%s, filtered %v: %q, %v", protocol, keep != nil, line, err)
			}
			if last.Type != "ERROR" || last.Object.Kind != "Status" || last.Object.Message != "locked" || last.Object.Reason != "Forbidden" || last.Object.Code != 403 {
				t.Errorf("%s, filtered %v: the last event: %+v", protocol, keep != nil, last)
			}
			// HTTP/2 clients were told of a broken stream beside it.
			if line, err := lines.ReadString('\n'); err == nil || err != io.EOF && protocol == "h2" {
				t.Errorf("%s: after the last event: %q, %v", protocol, line, err)
			}
			res.Body.Close()
		}
	}
}

// TestWatchWithoutFarewell: what cannot be told in JSON between two events is cut, and so is a watch
// whose client does not read.
func TestWatchWithoutFarewell(t *testing.T) {
	for name, c := range map[string]struct{ kind, begin string }{
		"protobuf":        {"application/vnd.kubernetes.protobuf;stream=watch", "\x00\x00\x00\x01x"},
		"within an event": {"application/json", `{"type":"ADDED","obj`},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
				w.Header().Set("Content-Type", c.kind)
				io.WriteString(w, c.begin)
				w.(http.Flusher).Flush()
				<-hr.Context().Done()
			})
			for _, protocol := range []string{"h2", "http/1.1"} {
				res, err := r.client(protocol).Get("http://kube/api/v1/pods?watch=1")
				if err != nil {
					t.Fatal(err)
				}
				begun := make([]byte, len(c.begin))
				if _, err := io.ReadFull(res.Body, begun); err != nil {
					t.Fatal(err)
				}
				r.lock()
				if rest, err := io.ReadAll(res.Body); err == nil || len(rest) > 0 {
					t.Errorf("%s: %q, %v", protocol, rest, err)
				}
				res.Body.Close()
			}
		})
	}
	t.Run("a client that does not read", func(t *testing.T) {
		var wrote atomic.Int64
		event := `{"type":"ADDED","object":` + podA + "}\n"
		r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for hr.Context().Err() == nil {
				if _, err := io.WriteString(w, event); err != nil {
					return
				}
				wrote.Add(1)
			}
		})
		client, served := r.dial("http/1.1")
		io.WriteString(client, "GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: kube\r\n\r\n")
		waitFor(t, "events", func() bool { return wrote.Load() > 1000 })
		r.lock()
		select {
		case <-served:
		case <-time.After(waitTime):
			t.Error("the connection stays")
		}
	})
}

// TestLockIdle: a connection that is kept ends with a lock too.
func TestLockIdle(t *testing.T) {
	r := newRig(t, onePod)
	for _, protocol := range []string{"h2", "http/1.1"} {
		served := make(chan struct{})
		p := new(http.Protocols)
		p.SetUnencryptedHTTP2(protocol == "h2")
		p.SetHTTP1(protocol != "h2")
		tr := &http.Transport{Protocols: p, DialContext: func(context.Context, string, string) (net.Conn, error) {
			conn, ended := r.dial(protocol)
			go func() { <-ended; close(served) }()
			return conn, nil
		}}
		do(t, &http.Client{Transport: tr, Timeout: waitTime}, "GET", "/api/v1/namespaces/a/pods/b", nil, nil)
		r.lock()
		select {
		case <-served:
		case <-time.After(waitTime):
			t.Errorf("%s: the connection stays", protocol)
		}
		tr.CloseIdleConnections()
	}
}

// TestNamesInBodies: a role for some names counts for objects to be created.
func TestNamesInBodies(t *testing.T) {
	got := make(chan string, 1)
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		b, _ := io.ReadAll(hr.Body)
		got <- string(b)
		w.WriteHeader(201)
		io.WriteString(w, "{}")
	})
	r.roles(func(q sallyport.KubeRequest) sallyport.KubeAnswer {
		return sallyport.KubeAnswer{Allowed: q.Name == "web", Groups: []string{"g"}, Reason: "not yours"}
	})
	c := r.client("h2")
	js := http.Header{"Content-Type": {"application/json"}}
	for _, tt := range []struct {
		h    http.Header
		body string
		code int
	}{
		{js, `{"metadata":{"name":"web"},"spec":1}`, 201},
		{js, `{"metadata":{"name":"db"}}`, 403},
		{js, `{"metadata":{"generateName":"web"}}`, 403},
		{js, `{"metadata":{"name":"db"},"metadata":{"name":"web"}}`, 403},
		{js, `{"metadata":{"name":"web"},"metadata":{"name":"db"}}`, 403},
		{js, `{"metadata":{"name":"db"},"Metadata":{"name":"web"}}`, 403},
		{js, `{"Metadata":{"name":"web"}}`, 403},
		{js, `{"metadata":{"name":"web","Name":"db"}}`, 403},
		{js, `[`, 403},
		{js, ``, 403},
		{http.Header{"Content-Type": {"application/yaml"}}, "metadata: {name: web}", 403},
		{http.Header{"Content-Type": {"application/vnd.kubernetes.protobuf"}}, "k8s\x00web", 403},
	} {
		res, body := do(t, c, "POST", "/api/v1/namespaces/a/pods", tt.h, strings.NewReader(tt.body))
		if res.StatusCode != tt.code {
			t.Errorf("%q: %d %s", tt.body, res.StatusCode, body)
		}
		if tt.code == 201 {
			if b := <-got; b != tt.body {
				t.Errorf("%q became %q", tt.body, b)
			}
		}
	}
	// A denial was of nothing by name, though the name was read.
	events := r.named("kube.request")
	for i, want := range []string{"web", "db", "", ""} {
		if got := events[i].Fields["resource_name"]; got != want {
			t.Errorf("event %d: %q, want %q", i, got, want)
		}
	}
}

// TestNamesForPrincipals: a role that allowed everything and gave nobody kept one that gives a group
// for some names from being asked.
func TestNamesForPrincipals(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		if got := hr.Header["Impersonate-Group"]; !slices.Equal(got, []string{"g"}) {
			t.Errorf("as %q", got)
		}
		io.Copy(io.Discard, hr.Body)
	})
	r.roles(func(q sallyport.KubeRequest) sallyport.KubeAnswer {
		a := sallyport.KubeAnswer{Allowed: true}
		if q.Name == "web" {
			a.Groups = []string{"g"}
		}
		return a
	})
	for name, want := range map[string]int{"web": 200, "db": 403} {
		res, body := do(t, r.client("h2"), "POST", "/api/v1/namespaces/a/pods", http.Header{"Content-Type": {"application/json"}}, strings.NewReader(`{"metadata":{"name":"`+name+`"}}`))
		if res.StatusCode != want {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
	}
}

// TestA75_Held: objects that are read for their names have a bound in memory, of
// one user and of all, and give their room back.
func TestA75_Held(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) { io.Copy(io.Discard, hr.Body) })
	r.roles(func(q sallyport.KubeRequest) sallyport.KubeAnswer {
		return sallyport.KubeAnswer{Allowed: q.Name == "web", Groups: []string{"g"}, Reason: "not yours"}
	})
	js := http.Header{"Content-Type": {"application/json"}}
	const path, begin, end = "/api/v1/namespaces/a/pods", `{"metadata":{"name":"web"},"pad":"`, `"}`
	taken := func() int {
		r.server.held.mu.Lock()
		defer r.server.held.mu.Unlock()
		if (r.server.held.all == 0) != (len(r.server.held.users) == 0) {
			t.Errorf("%d bytes of %d users", r.server.held.all, len(r.server.held.users))
		}
		return r.server.held.all
	}
	codes := make(chan int)
	var slow []*io.PipeWriter
	large := strings.Repeat("x", maxNamed-len(begin)-len(end))
	for i := range 6 { // there is room for four, which wait for their ends
		if i == 4 {
			waitFor(t, "four objects", func() bool { return taken() == heldOfUser }) // six that grow side by side may all be in each other's way
		}
		out, in := io.Pipe()
		slow = append(slow, in)
		c := r.client("h2")
		go func() {
			res, _ := do(t, c, "POST", path, js, out)
			codes <- res.StatusCode
		}()
		go io.WriteString(in, begin+large)
	}
	for range 2 {
		if code := <-codes; code != http.StatusTooManyRequests {
			t.Errorf("%d", code)
		}
	}
	waitFor(t, "the four alone", func() bool { return taken() == heldOfUser })
	res, _ := do(t, r.client("http/1.1"), "POST", path, js, strings.NewReader(begin+end))
	if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("one more: %d %v", res.StatusCode, res.Header)
	}
	if !r.server.held.take("another", heldOfUser) {
		t.Error("one user has the room of all")
	}
	r.server.held.give("another", heldOfUser)
	for _, in := range slow {
		go func() {
			io.WriteString(in, end)
			in.Close()
		}()
	}
	for range 4 {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("%d", code)
		}
	}
	waitFor(t, "all room", func() bool { return taken() == 0 })
	for _, body := range []string{strings.Repeat("x", maxNamed+1), `{"metadata":{"name":"db"}}`} {
		if res, _ := do(t, r.client("h2"), "POST", path, js, strings.NewReader(body)); res.StatusCode/100 != 4 {
			t.Errorf("%d", res.StatusCode)
		}
		waitFor(t, "room after a refusal", func() bool { return taken() == 0 })
	}
	for i := range heldOfAll / heldOfUser {
		if !r.server.held.take(fmt.Sprint(i), heldOfUser) {
			t.Errorf("no room for user %d", i)
		}
	}
	if r.server.held.take("last", 1) {
		t.Error("there is room beyond the bound of all")
	}
}

// TestA75_Shown: objects of lists that roles narrow were held without a bound, some
// megabytes of each answer that a client does not read.
func TestA75_Shown(t *testing.T) {
	object := `{"metadata":{"namespace":"a","name":"web"},"pad":"` + strings.Repeat("x", 200<<10) + `"}`
	goOn := make(chan struct{})
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"items":[`+object)
		if hr.URL.Query().Has("wait") {
			http.NewResponseController(w).Flush()
			<-goOn
		}
		io.WriteString(w, ","+object+"]}")
	})
	r.server.shown.ofUser = 1 << 20
	r.roles(func(sallyport.KubeRequest) sallyport.KubeAnswer {
		return sallyport.KubeAnswer{Allowed: true, Groups: []string{"g"}, Keep: func(_, name string) bool { return name == "web" }}
	})
	taken := func() int {
		r.server.shown.mu.Lock()
		defer r.server.shown.mu.Unlock()
		if all, hers := r.server.shown.all, r.server.shown.users["kate"]; all != hers {
			t.Errorf("%d bytes are taken, %d by the only user", all, hers)
		}
		return r.server.shown.all
	}
	if shownToUser > 256<<20 || shownToAll > 1<<30 {
		t.Errorf("%d bytes of a user, %d of all", shownToUser, shownToAll)
	}
	list := func(query string) (int, error) {
		req, err := http.NewRequest("GET", "http://kube/api/v1/namespaces/a/secrets"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := r.client("h2").Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		n, err := io.Copy(io.Discard, res.Body)
		return int(n), err
	}
	first := make(chan error)
	go func() {
		n, err := list("?wait=1")
		if err == nil && n < 2*len(object) {
			err = fmt.Errorf("%d bytes", n)
		}
		first <- err
	}()
	const needs = (64 + 128) << 10 * shownCost // to 256 KiB
	waitFor(t, "the first object", func() bool { return taken() == needs })
	if n, err := list(""); err == nil {
		t.Errorf("a second list of %d bytes is held", n)
	}
	waitFor(t, "the first alone", func() bool { return taken() == needs })
	close(goOn)
	if err := <-first; err != nil {
		t.Error(err)
	}
	waitFor(t, "all room", func() bool { return taken() == 0 })
	if n, err := list(""); err != nil || n < 2*len(object) {
		t.Errorf("%d bytes, %v", n, err)
	}
	waitFor(t, "all room", func() bool { return taken() == 0 })
}

// TestLargeBody: a request that is too large is refused, whether it says how
// large it is or not.
func TestLargeBody(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		io.Copy(io.Discard, hr.Body)
		io.WriteString(w, "{}")
	})
	r.server.Bounds.Size = 1 << 20
	for _, protocol := range []string{"h2", "http/1.1"} {
		res, body := do(t, r.client(protocol), "POST", "/api/v1/namespaces/a/pods", nil, io.LimitReader(endlessA{}, 3<<20))
		if res.StatusCode != 413 {
			t.Errorf("%s: %d %s", protocol, res.StatusCode, body)
		}
	}
}

// TestA75_Slow: who begins a request and does not end it is cut.
func TestA75_Slow(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) { io.Copy(io.Discard, hr.Body) })
	r.server.Bounds = Bounds{Header: 50 * time.Millisecond, Body: 50 * time.Millisecond, Idle: 50 * time.Millisecond}
	for _, sent := range []string{"", "GET /api HTTP/1.1\r\nHo", "POST /api/v1/namespaces/a/pods HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc", "GET /api HTTP/1.1\r\nHost: a\r\n\r\n"} {
		conn, served := r.dial("http/1.1")
		io.WriteString(conn, sent)
		select {
		case <-served:
		case <-time.After(waitTime):
			t.Errorf("after %q the connection stays", sent)
		}
	}
}

// echo switches protocols and sends back what it gets, after a word of its own.
func echo(w http.ResponseWriter, hr *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		w.WriteHeader(500)
		return
	}
	defer conn.Close()
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-User: %s\r\n\r\nhello\n", hr.Header.Get("Upgrade"), hr.Header.Get("Impersonate-User"))
	rw.Flush()
	io.Copy(conn, rw)
}

func ask(t *testing.T, w io.Writer, method, path, protocol string, extra string) {
	t.Helper()
	if _, err := fmt.Fprintf(w, "%s %s HTTP/1.1\r\nHost: kube\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n", method, path, protocol, extra); err != nil {
		t.Fatal(err)
	}
}

// TestStreams: exec, attach and port-forward pass as raw bytes by either protocol
// and method, are sessions of their own, and end with a lock.
func TestStreams(t *testing.T) {
	r := newRig(t, echo)
	for i, tt := range []struct{ method, path, protocol, start string }{
		{"POST", "/api/v1/namespaces/a/pods/b/exec?command=sh&command=-c&command=x&container=main&tty=true", "SPDY/3.1", "session.start"},
		{"GET", "/api/v1/namespaces/a/pods/b/exec?command=sh", "websocket", "session.start"},
		{"POST", "/api/v1/namespaces/a/pods/b/attach", "SPDY/3.1", "session.start"},
		{"GET", "/api/v1/namespaces/a/pods/b/portforward?ports=80", "websocket", "port"},
	} {
		starts, ends := len(r.named(tt.start)), len(r.named("session.end"))
		conn, served := r.dial("http/1.1")
		ask(t, conn, tt.method, tt.path, tt.protocol, "Impersonate-User: root\r\n")
		br := bufio.NewReader(conn)
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != strings.ToLower(tt.protocol) && res.Header.Get("Upgrade") != tt.protocol || res.Header.Get("X-User") != "kate" {
			t.Fatalf("%s: %v %+v", tt.path, err, res)
		}
		if line, err := br.ReadString('\n'); line != "hello\n" {
			t.Fatalf("%q %v", line, err)
		}
		io.WriteString(conn, "ping\n")
		if line, err := br.ReadString('\n'); line != "ping\n" {
			t.Fatalf("%q %v", line, err)
		}
		if len(r.named(tt.start)) != starts+1 {
			t.Errorf("%s: no %s", tt.path, tt.start)
		}
		if i%2 == 0 {
			r.lock()
		} else {
			conn.(interface{ CloseWrite() error }).CloseWrite()
		}
		if rest, _ := io.ReadAll(br); len(rest) > 0 {
			t.Errorf("%s: %q after the end", tt.path, rest)
		}
		select {
		case <-served:
		case <-time.After(waitTime):
			t.Fatalf("%s: the stream does not end", tt.path)
		}
		if len(r.named("session.end")) != ends+1 {
			t.Errorf("%s: no session.end", tt.path)
		}
	}
	start := r.named("session.start")[0]
	if got := start.Fields["initial_command"]; !slices.Equal(got.([]string), []string{"sh", "-c", "x"}) || start.Fields["interactive"] != true || start.Fields["kubernetes_container_name"] != "main" {
		t.Errorf("%+v", start.Fields)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open != 0 {
		t.Errorf("%d sessions stay open", r.open)
	}
}

// TestA122_UpgradeRefused: when the API server does not switch, what follows is
// HTTP again and judged again: CVE-2018-1002105 left a raw pipe.
func TestA122_UpgradeRefused(t *testing.T) {
	paths := make(chan string, 4)
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		paths <- hr.URL.Path + " " + hr.Header.Get("Impersonate-User")
		w.Header().Set("Content-Length", "2")
		w.WriteHeader(400)
		io.WriteString(w, "{}")
	})
	r.roles(func(q sallyport.KubeRequest) sallyport.KubeAnswer {
		a := everything(q)
		a.Allowed = q.Resource == "pods"
		return a
	})
	conn, _ := r.dial("http/1.1")
	br := bufio.NewReader(conn)
	ask(t, conn, "GET", "/api/v1/namespaces/a/pods/b/exec", "websocket", "")
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 400 {
		t.Fatalf("%v %+v", err, res)
	}
	io.Copy(io.Discard, res.Body)
	// In a raw pipe this would be the agent's own request.
	fmt.Fprint(conn, "GET /api/v1/secrets HTTP/1.1\r\nHost: kube\r\nImpersonate-User: system:admin\r\n\r\n")
	if res, err := http.ReadResponse(br, nil); err == nil && res.StatusCode != 403 {
		t.Errorf("after a refused upgrade: %+v", res)
	}
	if p := <-paths; p != "/api/v1/namespaces/a/pods/b/exec kate" {
		t.Errorf("%q", p)
	}
	select {
	case p := <-paths:
		t.Errorf("the API server was asked %q", p)
	default:
	}
}

// TestUpgradeRefusedIsTold: the end of a stream's session, which the spool may
// hold up, closed the connection before the API server's answer was sent.
func TestUpgradeRefusedIsTold(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, "no preferred addresses found")
	})
	closed := make(chan struct{})
	r.wrap = func(c net.Conn) net.Conn { return &closing{Conn: c, closed: closed} }
	r.ending = func() {
		select {
		case <-closed:
		case <-time.After(50 * time.Millisecond): // it does not come
		}
	}
	conn, _ := r.dial("http/1.1")
	ask(t, conn, "POST", "/api/v1/namespaces/a/pods/b/exec?command=sh", "SPDY/3.1", "")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != http.StatusInternalServerError {
		t.Fatalf("%v %+v", err, res)
	}
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "no preferred addresses found" {
		t.Errorf("%q %v", body, err)
	}
}

// closing tells when a connection is closed for the first time.
type closing struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestUpgradeElsewhere: a watch over a WebSocket could not be filtered.
func TestUpgradeElsewhere(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) { t.Error("passed on") })
	for _, path := range []string{"/api/v1/secrets?watch=1", "/api/v1/namespaces/a/pods/b/log", "/version"} {
		conn, _ := r.dial("http/1.1")
		ask(t, conn, "GET", path, "websocket", "")
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 400 {
			t.Errorf("%s: %v %+v", path, err, res)
		}
	}
}

// TestUnaskedSwitch: a hostile API server cannot make a pipe of a request.
func TestUnaskedSwitch(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		if hr.ProtoMajor == 2 {
			w.WriteHeader(http.StatusSwitchingProtocols)
			io.WriteString(w, "{}")
			return
		}
		echo(w, hr)
	})
	path := "/api/v1/namespaces/a/pods/b"
	if res, body := do(t, r.client("http/1.1"), "GET", path, nil, nil); res.StatusCode == 101 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	r.server.Target.plain = r.server.Target.streams // HTTP/1.1
	if res, body := do(t, r.client("http/1.1"), "GET", path, nil, nil); res.StatusCode != 502 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// TestServerGone: no answer is told as a Status.
func TestServerGone(t *testing.T) {
	r := newRig(t, nil)
	r.api.Close()
	res, body := do(t, r.client("h2"), "GET", "/api/v1/pods", nil, nil)
	if res.StatusCode != 502 || !strings.Contains(body, "the API server does not answer the agent") || strings.Contains(body, "127.0.0.1") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// TestA36_Canaries: answers on shared connections reach who asked.
func TestA36_Canaries(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		if strings.HasSuffix(hr.URL.Path, "7") {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, hr.URL.Path)
	})
	c := r.client("h2")
	errs := make(chan error, 8)
	for g := range 8 {
		go func() {
			for i := range 200 {
				path := fmt.Sprintf("/api/v1/namespaces/u%d/pods/p%d", g, i)
				ctx, cancel := context.WithTimeout(context.Background(), waitTime)
				req, _ := http.NewRequestWithContext(ctx, "GET", "http://kube"+path, nil)
				res, err := c.Do(req)
				if err == nil {
					b, rerr := io.ReadAll(res.Body)
					res.Body.Close()
					if rerr == nil && res.StatusCode == 200 && string(b) != path {
						errs <- fmt.Errorf("%s got %s", path, b)
						cancel()
						return
					}
				}
				cancel()
			}
			errs <- nil
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestStreamWithoutInput: what a command printed after it had closed its input was
// lost, when the client still sent.
func TestStreamWithoutInput(t *testing.T) {
	const output = 4 << 20
	deafened, conns := make(chan struct{}), make(chan *deaf.Conn, 1)
	r := newRig(t, func(w http.ResponseWriter, hr *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", hr.Header.Get("Upgrade"))
		rw.Flush()
		<-deafened
		io.Copy(conn, io.LimitReader(endlessA{}, output))
	})
	r.server.Target.streams.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		far := deaf.New(conn)
		conns <- far
		return far, err
	}
	conn, served := r.dial("http/1.1")
	br := bufio.NewReader(conn)
	ask(t, conn, "POST", "/api/v1/namespaces/a/pods/b/exec?command=sh", "SPDY/3.1", "")
	if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("%v %+v", err, res)
	}
	reached := <-conns
	reached.Deafen()
	io.WriteString(conn, "input that nobody reads")
	<-reached.Noted()
	close(deafened)
	if n, err := io.Copy(io.Discard, br); n != output || err != nil {
		t.Errorf("%d bytes of %d, %v", n, output, err)
	}
	conn.Close()
	select {
	case <-served:
	case <-time.After(waitTime):
		t.Fatal("the stream does not end")
	}
	if len(r.named("session.end")) != 1 {
		t.Error("no session.end")
	}
}

// TestCutStream: what ends closes a stream, whenever it begins, and leaves other
// connections to the HTTP server, which says to clients of HTTP/2 what is cut.
func TestCutStream(t *testing.T) {
	for name, tt := range map[string]struct {
		does func(*connected)
		open bool
	}{
		"no stream":           {func(c *connected) { c.cut() }, true},
		"a stream":            {func(c *connected) { c.switched(); c.cut() }, false},
		"a stream that comes": {func(c *connected) { c.cut(); c.switched() }, false},
		"a stream goes on":    {func(c *connected) { c.switched() }, true},
	} {
		near, far := net.Pipe()
		tt.does(&connected{Conn: far})
		near.SetReadDeadline(time.Unix(1, 0))
		if _, err := near.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) != tt.open {
			t.Errorf("%s: %v", name, err)
		}
		near.Close()
		far.Close()
	}
}
