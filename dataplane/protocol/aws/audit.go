package aws

import (
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

const (
	// maxQuery and the like bound what one event holds of a request.
	maxQuery  = 2 << 10
	maxPath   = 2 << 10
	maxTarget = 256
	maxMethod = 32
)

// use is what every connection asks for, with its events.
func use(c *session.Candidate, role string) session.Use {
	f := func() map[string]any { return fields(c, role) }
	return session.Use{
		Action: sallyport.ActionConnect, AWSRole: role,
		Start:  sallyport.Event{Name: "app.session.start", Code: "T2007I", Fields: f()},
		Denied: sallyport.Event{Name: "app.session.start", Code: "T2007E", Fields: f()},
		End:    sallyport.Event{Name: "app.session.end", Code: "T2011I", Fields: f()},
	}
}

func fields(c *session.Candidate, role string) map[string]any {
	r := c.Resource
	f := map[string]any{"app_name": r.Name, "app_uri": r.Address, "app_public_addr": r.Name + ".app." + c.Identity.Cluster}
	if role != "" {
		f["aws_role_arn"] = role
	}
	if len(r.Labels) > 0 {
		f["app_labels"] = maps.Clone(r.Labels)
	}
	return f
}

// log writes one request down. Bodies and headers but one are not in it.
func (v *visit) log(q *ask, r *http.Request, status int) {
	v.requests.Add(1)
	f := fields(v.candidate, q.role)
	f["method"], f["path"], f["raw_query"], f["status_code"] = cut(r.Method, maxMethod), cut(r.URL.EscapedPath(), maxPath), cut(shown(q.service, r.URL.RawQuery), maxQuery), int64(status)
	f["aws_service"], f["aws_region"] = q.service, q.endpoint.region
	if q.endpoint.host != "" {
		f["aws_host"], f["aws_assumed_role"] = q.endpoint.host, q.role
	}
	if q.operation != "" {
		f["target"] = cut(q.operation, maxTarget)
	}
	e := sallyport.Event{Name: "app.session.request", Code: "T2009I", Fields: f}
	if q.service == "dynamodb" {
		e.Name, e.Code = "app.session.dynamodb.request", "T2013I"
	}
	v.session.Emit(e)
}

// logRefused writes down what is refused within a session. Its query may hold what
// signs, and what it says of a role need not be one.
func (v *visit) logRefused(q *ask, r *http.Request, status int) {
	v.mu.Lock()
	opened := v.session != nil
	v.mu.Unlock()
	if !opened {
		return
	}
	shown := *r
	shown.URL = &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath}
	said := *q
	if !ValidRole(said.role) {
		said.role = ""
	}
	v.log(&said, &shown, status)
}

// shown is what of a query an event holds: all that S3 is asked, and of other
// services the operation. Their parameters may be secrets.
func shown(service, query string) string {
	if service == "s3" {
		return query
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return ""
	}
	kept := url.Values{}
	for _, name := range []string{"Action", "Version"} {
		if v, ok := values[name]; ok {
			kept[name] = v
		}
	}
	return kept.Encode()
}

// cut shortens at a rune's border.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
