package kube

import (
	"cmp"
	"maps"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// maxCommand bounds what one event holds of a command: arguments, and bytes of
// them all.
const (
	maxArguments = 256
	maxCommand   = 32 << 10
)

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

// fields are those that every event of a request has.
func (c *call) fields() map[string]any {
	f := map[string]any{
		"kubernetes_cluster": c.live.candidate.Resource.Name,
		"kubernetes_labels":  labelsOf(c.live.candidate.Resource),
		"proto":              "kube",
		"verb":               c.method,
		"request_path":       printable(c.path),
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
			f["ports"] = bounded(ports)
		}
	case subExec:
		f["initial_command"] = bounded(q["command"])
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

// bounded keeps the beginning of a command.
func bounded(args []string) []string {
	out := []string{}
	left := maxCommand
	for i, a := range args {
		if i == maxArguments || len(a) > left {
			return append(out, "…")
		}
		left -= len(a)
		out = append(out, clean(a))
	}
	return out
}

// clean is an argument as the log can hold it; what is not UTF-8 is quoted, and
// no byte is lost.
func clean(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strconv.QuoteToASCII(s)
}
