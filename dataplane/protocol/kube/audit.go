package kube

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/eventtext"
)

// maxCommand bounds what one event holds of a command, in bytes as its line has them;
// all its arguments stand in a query of maxQuery.
const maxCommand = 32 << 10

// connection is what a client asks for by connecting.
func connection(c *session.Candidate) session.Use {
	fields := func() map[string]any {
		return map[string]any{"kubernetes_cluster": c.Resource.Name, "kubernetes_labels": labelsOf(c.Resource), "proto": "kube"}
	}
	yes, no := true, false
	return session.Use{
		Action: sallyport.ActionConnect,
		Start:  sallyport.Event{Name: "session.connect", Code: "T2010I", Success: &yes, Fields: fields()},
		Denied: sallyport.Event{Name: "kube.request", Code: "T3009I", Success: &no, Fields: fields()},
	}
}

func labelsOf(r sallyport.Resource) map[string]any {
	out := map[string]any{}
	for k, v := range r.Labels {
		out[k] = v
	}
	return out
}

// maxSaid bounds what one event holds of a kubelet's query.
const maxSaid = 8 << 10

// fields are those that every event of a request has. A path is there whole: of a
// proxied program the end is what it is asked. So is what a kubelet is asked, which
// runs commands that stand in its query; of others the query is not ours to tell.
func (c *call) fields() map[string]any {
	f := map[string]any{
		"kubernetes_cluster": c.live.candidate.Resource.Name,
		"kubernetes_labels":  labelsOf(c.live.candidate.Resource),
		"proto":              "kube",
		"verb":               c.method,
		"request_path":       printableTo(c.path, maxPath),
	}
	if r := c.request; r != nil && r.group == "" && r.resource == "nodes" && r.subresource == "proxy" && c.query != "" {
		f["request_query"] = printableTo(c.query, maxSaid)
		if f["request_query"] != c.query {
			sum := sha256.Sum256([]byte(c.query))
			f["request_query_size"], f["request_query_sha256"] = int64(len(c.query)), hex.EncodeToString(sum[:])
		}
	}
	if r := c.request; r != nil && r.resource != "" {
		f["resource_api_group"] = joinGroup(r)
		f["resource_kind"] = printable(r.resource)
		f["resource_name"] = printable(cmp.Or(r.name, c.named))
		f["resource_namespace"] = printable(r.namespace)
		if r.subresource != "" {
			f["resource_subresource"] = printable(r.subresource)
		}
	}
	if c.as.user != "" {
		f["kubernetes_users"] = []string{c.as.user}
		f["kubernetes_groups"] = c.as.groups
	}
	return f
}

func joinGroup(r *request) string {
	if r.group == "" {
		return "core/" + printable(r.version)
	}
	return printable(r.group) + "/" + printable(r.version)
}

// record writes a request down, once, with the status of its answer.
func (c *call) record(code int, why string) {
	if c.recorded || c.live.sess == nil {
		return
	}
	c.recorded = true
	f := c.fields()
	f["response_code"] = int64(code)
	if why != "" {
		f["error"] = why
	}
	ok := code < http.StatusBadRequest
	c.live.sess.Emit(sallyport.Event{Name: "kube.request", Code: "T3009I", Success: &ok, Fields: f})
}

// use is the session that a stream is.
func (c *call) use() session.Use {
	r, q := c.request, c.request.query
	f := c.fields()
	f["kubernetes_pod_name"] = printable(r.name)
	f["kubernetes_pod_namespace"] = printable(r.namespace)
	if name := q.Get("container"); name != "" {
		f["kubernetes_container_name"] = printable(name)
	}
	f["session_recording"] = "off"
	yes, no := true, false
	u := session.Use{Action: sallyport.ActionConnect}
	name, code := "session.start", "T2000I"
	switch c.stream {
	case subForward:
		name, code = "port", "T3003I"
		if ports := q["ports"]; len(ports) > 0 {
			f["ports"], _ = bounded(ports)
		}
	case subExec:
		sayCommand(f, q["command"])
		f["interactive"] = truthy(q.Get("tty"))
	default:
		f["interactive"] = truthy(q.Get("tty"))
	}
	u.Start = sallyport.Event{Name: name, Code: code, Success: &yes, Fields: f}
	u.Denied = sallyport.Event{Name: "kube.request", Code: "T3009I", Success: &no, Fields: maps.Clone(f)}
	u.End = sallyport.Event{Name: "session.end", Code: "T2004I", Fields: maps.Clone(f)}
	return u
}

func truthy(s string) bool { return s == "true" || s == "1" }

// sayCommand puts a command into the fields of an event. Where that is not all of it,
// how many arguments it has and a hash, over each of them with a NUL behind it, say
// which command it was.
func sayCommand(f map[string]any, args []string) {
	list, whole := bounded(args)
	f["initial_command"] = list
	if whole {
		return
	}
	sum := sha256.New()
	for _, a := range args {
		io.WriteString(sum, a+"\x00")
	}
	f["initial_command_truncated"], f["initial_command_count"] = true, int64(len(args))
	f["initial_command_sha256"] = hex.EncodeToString(sum.Sum(nil))
}

// bounded is a command, or as much of its beginning as an event holds.
func bounded(args []string) (list []string, whole bool) {
	list = []string{}
	left := maxCommand
	for _, a := range args {
		text := clean(a)
		n, size := eventtext.Fit(text, max(0, left))
		if left -= len(`"",`) + size; n < len(text) || left < 0 {
			return append(list, text[:n]+"…"), false
		}
		list = append(list, text)
	}
	return list, true
}

// clean is an argument as the log can hold it; what is not UTF-8 is quoted, and
// no byte is lost.
func clean(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strconv.QuoteToASCII(s)
}
