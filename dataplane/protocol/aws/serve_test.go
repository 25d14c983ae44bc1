package aws

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sigv4"
)

// TestRole: STS is asked for the role, once, in the user's name, and what it lends signs
// the requests.
func TestRole(t *testing.T) {
	r := newRig(t)
	c := r.keep()
	for range 3 {
		q := asked(t, "dynamodb", "eu-west-1", reader, `{"Limit":1}`)
		q.Header.Set(sigv4.TargetHeader, "DynamoDB_20120810.ListTables")
		q.Header.Set("Content-Type", "application/x-amz-json-1.0")
		if resp, body := r.do(c, q); resp.StatusCode != 200 || body != "LENTKEY dynamodb eu-west-1 /" {
			t.Fatalf("%s %q", resp.Status, body)
		}
	}
	if n, assumed := r.cloud.counts(); n != 3 || assumed != 1 {
		t.Errorf("%d requests, %d of STS", n, assumed)
	}
	form, err := url.ParseQuery(r.cloud.assumed[0])
	if err != nil || form.Get("RoleArn") != reader || form.Get("RoleSessionName") != "alice" || form.Get("ExternalId") != external || form.Get("DurationSeconds") != "900" {
		t.Errorf("STS was asked %v, %v", form, err)
	}
	if q, body := r.cloud.last(); q.Header.Get(sigv4.TargetHeader) != "DynamoDB_20120810.ListTables" || body != `{"Limit":1}` {
		t.Errorf("%v %q", q.Header, body)
	}
	r.over()
	if use := r.uses[0]; len(r.uses) != 1 || use.AWSRole != reader {
		t.Errorf("asked for %+v", r.uses)
	}
	events := r.named("app.session.dynamodb.request")
	if len(events) != 3 || len(r.ended) != 1 || r.ended[0]["requests"] != int64(3) || r.ended[0]["rx"] != int64(33) {
		t.Fatalf("%d events, ended %v", len(events), r.ended)
	}
	host := strings.TrimPrefix(r.cloud.URL, "http://")
	for name, want := range map[string]any{"app_name": "cloud", "app_public_addr": "cloud.app." + cluster, "method": "POST", "path": "/", "status_code": int64(200), "aws_service": "dynamodb", "aws_region": "eu-west-1",
		"aws_host": host, "aws_assumed_role": reader, "aws_role_arn": reader, "target": "DynamoDB_20120810.ListTables"} {
		if got := events[0].Fields[name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if events[0].Code != "T2013I" || r.named("app.session.start")[0].Fields["aws_role_arn"] != reader {
		t.Errorf("%+v", events[0])
	}
}

// TestOwnRole: the agent's own credentials, for who may use that role; STS is not asked
// with them, neither by us nor by the client.
func TestOwnRole(t *testing.T) {
	r := newRig(t)
	if resp, body := r.do(r.client(), asked(t, "s3", "eu-west-1", local, "")); resp.StatusCode != 200 || body != "AGENTKEY s3 eu-west-1 /" {
		t.Errorf("%s %q", resp.Status, body)
	}
	q := asked(t, "sts", "eu-west-1", local, "Action=GetSessionToken&Version=2011-06-15")
	q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if resp, body := r.do(r.client(), q); resp.StatusCode != 403 || !strings.Contains(body, "<Code>AccessDenied</Code>") || !strings.Contains(body, "own credentials") {
		t.Errorf("%s %q", resp.Status, body)
	}
	if resp, body := r.do(r.client(), asked(t, "STS", "eu-west-1", local, "Action=GetSessionToken")); resp.StatusCode != 403 || !strings.Contains(body, "own credentials") {
		t.Errorf("in capitals: %s %q", resp.Status, body)
	}
	if n, assumed := r.cloud.counts(); n != 1 || assumed != 0 {
		t.Errorf("%d requests, %d of STS", n, assumed)
	}
	// As another role STS may be asked: it is that role which asks.
	if resp, body := r.do(r.client(), asked(t, "sts", "eu-west-1", reader, "Action=GetCallerIdentity")); resp.StatusCode != 200 || body != "LENTKEY sts eu-west-1 /" {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestHeaders: what the client may not say is gone, and what AWS is to read arrives.
func TestHeaders(t *testing.T) {
	r := newRig(t)
	q := asked(t, "s3", "eu-west-1", local, "data")
	q.Method, q.URL.Path, q.URL.RawPath, q.URL.RawQuery = "PUT", "/bucket/a b/ü+c", "/bucket/a%20b/%C3%BC+c", "uploadId=x%2Fy&partNumber=1"
	for name, v := range map[string]string{"X-Forwarded-For": "1.2.3.4", "Cookie": "a=b", "Sallyport-X": "y", "Teleport-Aws": "z", "Proxy-Authorization": "x", "Te": "trailers",
		sigv4.TokenHeader: "mine", "X-Amz-Meta-Colour": "blue  green", "Content-Type": "text/plain", "Content-Md5": "jXd/OF09/siBXSD3SWAm3A==", "User-Agent": "aws-cli/2"} {
		q.Header.Set(name, v)
	}
	r.cloud.answer = func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Set-Cookie", "Alt-Svc", "Strict-Transport-Security", "Sallyport-X"} {
			w.Header().Set(name, "x=y")
		}
		w.Header().Set("Etag", `"1"`)
	}
	resp, body := r.do(r.client(), q)
	got, sent := r.cloud.last()
	if resp.StatusCode != 200 || sent != "data" || got.URL.EscapedPath() != "/bucket/a%20b/%C3%BC+c" || got.URL.Query().Get("uploadId") != "x/y" || got.Method != "PUT" {
		t.Errorf("%s %q: %s %s %q", resp.Status, body, got.Method, got.URL, sent)
	}
	for _, name := range []string{"X-Forwarded-For", "Cookie", "Sallyport-X", RoleHeader, "Teleport-Aws", "Proxy-Authorization", "Te", sigv4.TokenHeader} {
		if v := got.Header.Get(name); v != "" {
			t.Errorf("%s: %s arrived", name, v)
		}
	}
	for name, want := range map[string]string{"X-Amz-Meta-Colour": "blue  green", "Content-Type": "text/plain", "User-Agent": "aws-cli/2", "Content-Md5": "jXd/OF09/siBXSD3SWAm3A=="} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s: %q, want %q", name, v, want)
		}
	}
	if a := got.Header.Get("Authorization"); strings.Contains(a, "SALLYKEY") || !strings.Contains(a, "AGENTKEY") {
		t.Errorf("signed %s", a)
	}
	for _, name := range []string{"Set-Cookie", "Alt-Svc", "Strict-Transport-Security", "Sallyport-X"} {
		if resp.Header.Get(name) != "" {
			t.Errorf("%s came back", name)
		}
	}
	r.over()
	if resp.Header.Get("Etag") == "" || r.named("app.session.request")[0].Fields["raw_query"] != "uploadId=x%2Fy&partNumber=1" {
		t.Errorf("%v %v", resp.Header, r.named("app.session.request"))
	}
}

// TestRefused: what is none of a client's to ask never leaves the agent.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*http.Request)
		status int
		want   string
	}{
		"no signature":        {func(q *http.Request) { q.Header.Del("Authorization") }, 400, "sally aws"},
		"another algorithm":   {func(q *http.Request) { q.Header.Set("Authorization", "Bearer x") }, 400, "sally aws"},
		"a region as host":    {scope("eu-west-1", "evil.test"), 400, "Authorization"},
		"two signatures":      {func(q *http.Request) { q.Header.Add("Authorization", q.Header.Get("Authorization")) }, 400, "twice"},
		"two roles":           {func(q *http.Request) { q.Header.Add(RoleHeader, local) }, 400, "twice"},
		"a role that is none": {func(q *http.Request) { q.Header.Set(RoleHeader, "admin") }, 400, "ARN"},
		"a user":              {func(q *http.Request) { q.Header.Set(RoleHeader, "arn:aws:iam::123456789012:user/root") }, 400, "ARN"},
		"another host":        {func(q *http.Request) { q.Host = "other.app.gw.test" }, 400, "host"},
		"a presigned link":    {func(q *http.Request) { q.URL.RawQuery = "X-Amz-Signature=0&X-Amz-Credential=x" }, 400, "query"},
		"a broken query":      {func(q *http.Request) { q.URL.RawQuery = "a=%zz" }, 400, "two ways"},
		"a semicolon":         {func(q *http.Request) { q.URL.RawQuery = "a=b;c=d" }, 400, "two ways"},
		"no hash":             {func(q *http.Request) { q.Header.Del(sigv4.PayloadHeader) }, 400, "what its body is"},
		"signed pieces":       {func(q *http.Request) { q.Header.Set(sigv4.PayloadHeader, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD") }, 400, "signed in pieces"},
		"unknown length":      {func(q *http.Request) { q.ContentLength = -1 }, 400, "how long"},
		"an upgrade":          {func(q *http.Request) { q.Header.Set("Connection", "Upgrade"); q.Header.Set("Upgrade", "websocket") }, 400, "not passed on"},
		"headers to drop":     {func(q *http.Request) { q.Header.Set("Connection", "close, "+sigv4.TargetHeader) }, 400, "not passed on"},
		"two types":           {func(q *http.Request) { q.Header["Content-Type"] = []string{"text/plain", "application/x-amz-json-1.0"} }, 400, "twice"},
		"a wrong hash":        {func(q *http.Request) { q.Header.Set(sigv4.PayloadHeader, hashOf("other")) }, 403, "SignatureDoesNotMatch"}, // AWS itself says so
	} {
		r := newRig(t)
		q := asked(t, "dynamodb", "eu-west-1", local, "{}")
		c.change(q)
		resp, body := r.do(r.client(), q)
		r.over()
		n, _ := r.cloud.counts()
		if resp.StatusCode != c.status || !strings.Contains(body, c.want) || n != 0 {
			t.Errorf("%s: %s %q, %d requests left", name, resp.Status, body, n)
		}
		if c.status == 400 && len(r.uses) != 0 {
			t.Errorf("%s: a session was asked for", name)
		}
	}
}

// scope changes the signature's text.
func scope(from, to string) func(*http.Request) {
	return func(q *http.Request) {
		q.Header.Set("Authorization", strings.Replace(q.Header.Get("Authorization"), from, to, 1))
	}
}

// TestDenied: the reason is told where each client looks for it, and there is no
// second look at a connection that was refused.
func TestDenied(t *testing.T) {
	r := newRig(t)
	r.denial = sallyport.Denied("access to app cloud denied: role \"dev\" allows AWS roles x", "")
	c := r.client()
	for range 2 {
		if resp, body := r.do(c, asked(t, "dynamodb", "eu-west-1", reader, "{}")); resp.StatusCode != 403 || !strings.Contains(body, r.denial.Fact[:20]) || resp.Header.Get("X-Amzn-Errortype") != "AccessDenied" {
			t.Errorf("%s %q", resp.Status, body)
		}
	}
	r.over()
	if n, assumed := r.cloud.counts(); n+assumed != 0 || len(r.named("app.session.request")) != 0 {
		t.Errorf("%d requests, %d of STS", n, assumed)
	}
	if e := r.named("app.session.start"); len(e) == 0 || e[0].Code != "T2007E" || e[0].Fields["aws_role_arn"] != reader {
		t.Errorf("%+v", e)
	}
}

// TestNoRole: where roles would let somebody in without a role of AWS, there is none
// all the same.
func TestNoRole(t *testing.T) {
	r := newRig(t)
	r.server.Account.OwnRole = ""
	if resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", "", "{}")); resp.StatusCode != 403 || !strings.Contains(body, "no role of AWS is named") {
		t.Errorf("%s %q", resp.Status, body)
	}
	if n, assumed := r.cloud.counts(); n+assumed != 0 {
		t.Errorf("%d requests, %d of STS", n, assumed)
	}
}

// TestRoleOfConnection: a session is for one role.
func TestRoleOfConnection(t *testing.T) {
	r := newRig(t)
	c := r.keep()
	r.do(c, asked(t, "dynamodb", "eu-west-1", reader, "{}"))
	if resp, body := r.do(c, asked(t, "dynamodb", "eu-west-1", local, "{}")); resp.StatusCode != 403 || !strings.Contains(body, "another role") {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestAllowed: services and regions of the configuration, of which the refusal is in
// the audit log.
func TestAllowed(t *testing.T) {
	r := newRig(t)
	r.server.Target.Services, r.server.Target.Regions = []string{"dynamodb"}, []string{"eu-west-1"}
	for _, c := range []struct {
		service, region string
		status          int
	}{{"dynamodb", "eu-west-1", 200}, {"dynamodb", "us-east-1", 403}, {"s3", "eu-west-1", 403}} {
		if resp, body := r.do(r.client(), asked(t, c.service, c.region, local, "{}")); resp.StatusCode != c.status {
			t.Errorf("%v: %s %q", c, resp.Status, body)
		}
	}
	r.over()
	if n := len(r.named("app.session.dynamodb.request")); n != 2 {
		t.Errorf("%d events of DynamoDB", n)
	}
	if e := r.named("app.session.request"); len(e) != 1 || e[0].Fields["status_code"] != int64(403) || e[0].Fields["aws_service"] != "s3" || e[0].Fields["aws_region"] != "eu-west-1" || e[0].Fields["aws_host"] != nil {
		t.Errorf("%+v", e)
	}
}

// TestSTSRefuses: the user learns the code, not who the agent is.
func TestSTSRefuses(t *testing.T) {
	r := newRig(t)
	r.cloud.refuse = true
	resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", reader, "{}"))
	if resp.StatusCode != 403 || !strings.Contains(body, "the agent cannot act as "+reader+": AccessDenied") || strings.Contains(body, "user/agent") {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestBrowser: a browser's certificate opens nothing here.
func TestBrowser(t *testing.T) {
	r := newRig(t)
	r.id.Usage = sallyport.UsageWeb
	if resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", local, "{}")); resp.StatusCode != 403 || !strings.Contains(body, "sally aws") || len(r.uses) != 0 {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestLock: a session that ends cuts what runs.
func TestLock(t *testing.T) {
	r := newRig(t)
	begun := make(chan struct{})
	r.cloud.answer = func(w http.ResponseWriter, q *http.Request) {
		io.WriteString(w, "first")
		http.NewResponseController(w).Flush()
		close(begun)
		<-q.Context().Done()
	}
	resp, err := r.client().Do(asked(t, "s3", "eu-west-1", local, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-begun
	r.end(sallyport.Denied("locked", ""))
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the answer went on, and ended: %q", b)
	}
}

// TestStreams: a body larger than anything that is kept passes, and comes back.
func TestStreams(t *testing.T) {
	r := newRig(t)
	const size = 8 << 20
	q := asked(t, "s3", "eu-west-1", local, "")
	q.Method, q.ContentLength, q.Body = "PUT", size, io.NopCloser(io.LimitReader(zeros{}, size))
	q.Header.Set(sigv4.PayloadHeader, "UNSIGNED-PAYLOAD")
	if resp, body := r.do(r.client(), q); resp.StatusCode != 200 {
		t.Errorf("%s %q", resp.Status, body)
	}
	if got, body := r.cloud.last(); len(body) != size || got.Header.Get(sigv4.PayloadHeader) != "UNSIGNED-PAYLOAD" {
		t.Errorf("%d bytes, %v", len(body), got.Header)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestSecrets: nothing that signs, and no parameter of a service, is in an event.
func TestSecrets(t *testing.T) {
	r := newRig(t)
	q := asked(t, "rds", "eu-west-1", reader, "Action=ModifyDBInstance&MasterUserPassword=hunter2")
	q.URL.RawQuery = "Action=ModifyDBInstance&Version=2014-10-31&MasterUserPassword=hunter2"
	r.do(r.client(), q)
	r.over()
	all := fmt.Sprintf("%+v", r.events)
	for _, secret := range []string{"hunter2", own.Secret, lent.Secret, token, own.AccessKey, lent.AccessKey, "Signature="} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is in the audit log:\n%s", secret, all)
		}
	}
	if e := r.named("app.session.request"); len(e) != 1 || e[0].Fields["raw_query"] != "Action=ModifyDBInstance&Version=2014-10-31" {
		t.Errorf("%+v", e)
	}
}

// TestIdle: a user whose roles allow no silence is sent away.
func TestIdle(t *testing.T) {
	r := newRig(t)
	r.options.ClientIdleTimeout = 10 * time.Millisecond
	conn := r.dial()
	q := asked(t, "dynamodb", "eu-west-1", local, "{}")
	if err := q.Write(conn); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("the connection stayed")
	}
}

func TestLocate(t *testing.T) {
	for _, c := range []struct{ service, region, operation, host, signed string }{
		{"dynamodb", "eu-central-1", "DynamoDB_20120810.ListTables", "dynamodb.eu-central-1.amazonaws.com", "eu-central-1"},
		{"dynamodb", "eu-central-1", "DynamoDBStreams_20120810.ListStreams", "streams.dynamodb.eu-central-1.amazonaws.com", "eu-central-1"},
		{"s3", "us-east-1", "", "s3.us-east-1.amazonaws.com", "us-east-1"},
		{"sts", "ap-southeast-2", "", "sts.ap-southeast-2.amazonaws.com", "ap-southeast-2"},
		{"iam", "eu-west-1", "", "iam.amazonaws.com", "us-east-1"},
		{"iam", "cn-north-1", "", "iam.cn-north-1.amazonaws.com.cn", "cn-north-1"},
		{"iam", "us-gov-east-1", "", "iam.us-gov.amazonaws.com", "us-gov-west-1"},
		{"ec2", "cn-northwest-1", "", "ec2.cn-northwest-1.amazonaws.com.cn", "cn-northwest-1"},
		{"ses", "eu-west-1", "", "email.eu-west-1.amazonaws.com", "eu-west-1"},
		{"ecr", "eu-west-1", "", "api.ecr.eu-west-1.amazonaws.com", "eu-west-1"},
		{"IoTSecuredTunneling", "eu-west-1", "", "api.tunneling.iot.eu-west-1.amazonaws.com", "eu-west-1"},
		{"route53", "eu-west-1", "", "route53.amazonaws.com", "us-east-1"},
	} {
		if at, err := locate(c.service, c.region, c.operation); err != nil || at.host != c.host || at.region != c.signed {
			t.Errorf("%v: %+v, %v", c, at, err)
		}
	}
	// No word of a client makes another host: not a machine (ec2-1-2-3-4.us-west-2.compute), not a load
	// balancer (name.us-east-1.elb), not an API.
	for _, c := range [][2]string{{"ec2-1-2-3-4", "compute-1"}, {"name", "elb"}, {"s3", "localhost"}, {"s3", "us-east-1-evil"}, {"s3", "us-iso-east-1"}, {"execute-api", "us-east-1"}, {"s3express", "us-east-1"},
		{"waf", "cn-north-1"}, {"Evil", "us-east-1"}, {"a_b", "us-east-1"}, {"s3", ""}, {"s3", "aws-global"}} {
		if at, err := locate(c[0], c[1], ""); err == nil {
			t.Errorf("%v leads to %+v", c, at)
		}
	}
}

// FuzzLocate: whatever a signature says, requests go to a host of AWS: labels below
// its domains.
func FuzzLocate(f *testing.F) {
	for _, s := range [][3]string{{"dynamodb", "eu-west-1", ""}, {"iam", "us-gov-west-1", ""}, {"ses", "cn-north-1", "x"}, {"dynamodb", "us-east-1", "DynamoDBStreams_20120810.X"}, {"a.b", "us-east-1", ""}, {"evil.test/", "us-east-1", ""}} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, service, region, operation string) {
		if !sigv4.Word(service) || !sigv4.Word(region) {
			return // never read
		}
		at, err := locate(service, region, operation)
		if err != nil {
			return
		}
		u, err := url.Parse("https://" + at.host + "/")
		if err != nil || u.Host != at.host || u.Port() != "" || u.User != nil {
			t.Fatalf("%q %q: %q, %v", service, region, at.host, err)
		}
		below, china := strings.CutSuffix(at.host, ".amazonaws.com.cn")
		if !china {
			var ok bool
			if below, ok = strings.CutSuffix(at.host, ".amazonaws.com"); !ok {
				t.Fatalf("%q %q: %q", service, region, at.host)
			}
		}
		if strings.HasPrefix(region, "cn-") != china {
			t.Fatalf("%q %q: %q is of another partition", service, region, at.host)
		}
		for label := range strings.SplitSeq(below, ".") {
			if !sigv4.Word(label) {
				t.Fatalf("%q %q: %q has a label %q", service, region, at.host, label)
			}
		}
		if p, ok := partitionOf(at.region); !ok || china != (p.name == "aws-cn") {
			t.Fatalf("%q %q: signed for %q", service, region, at.region)
		}
	})
}

// TestForbidden: the addresses where clouds keep secrets for their machines are never
// dialed, however they are written, and this machine only when it is configured.
func TestForbidden(t *testing.T) {
	for text, want := range map[string][2]bool{ // address: allowed when configured, allowed for AWS
		"169.254.169.254": {}, "169.254.170.2": {}, "169.254.170.23": {}, "fd00:ec2::254": {}, "fd00:ec2::23": {}, "fe80::a9fe:a9fe%eth0": {}, "::ffff:169.254.169.254": {}, "100.100.100.200": {}, "168.63.129.16": {},
		"0.0.0.0": {}, "::": {}, "224.0.0.1": {}, "ff02::1": {},
		"127.0.0.1": {true, false}, "::1": {true, false}, "::ffff:127.0.0.1": {true, false},
		"10.0.0.7": {true, true}, "52.94.0.1": {true, true}, "2a05:d07a::1": {true, true},
	} {
		a := netip.MustParseAddr(text)
		if here, aws := forbidden(a, true) == nil, forbidden(a, false) == nil; here != want[0] || aws != want[1] {
			t.Errorf("%s: configured %v, AWS %v", text, here, aws)
		}
	}
	console := &Target{URI: "https://console.aws.amazon.com"}
	if err := console.control(context.Background(), "tcp", "127.0.0.1:443", nil); err == nil {
		t.Error("AWS is looked for on this machine")
	}
	if err := (&Target{URI: "http://localhost:8000"}).control(context.Background(), "tcp", "169.254.169.254:80", nil); err == nil {
		t.Error("the metadata service is dialed")
	}
}

// TestMetadata: what leads there, a name for instance, is refused when it is dialed.
func TestMetadata(t *testing.T) {
	r := newRig(t)
	var log strings.Builder
	r.server.Log = slog.New(slog.NewTextHandler(&log, nil))
	r.server.Target.URI = "http://[::ffff:169.254.169.254]:80"
	resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", local, "{}"))
	r.over()
	if resp.StatusCode != 502 || strings.Contains(body, "169.254") || !strings.Contains(log.String(), "169.254.169.254 is not the address of a server of AWS") {
		t.Errorf("%s %q; the log says %s", resp.Status, body, &log)
	}
}

func TestTargets(t *testing.T) {
	for uri, want := range map[string]bool{
		"https://console.aws.amazon.com": true, "https://console.aws.amazon.com/": true, "https://us-east-1.console.aws.amazon.com/x": true, "https://console.amazonaws.cn": true, "https://Console.AWS.amazon.com:443/": true,
		"http://localhost:8000": true, "https://dynamo.internal": true, "http://10.0.0.1:8000/": true,
		"": false, "unix:/x": false, "http://u:p@x": false, "http://x/path": false, "http://169.254.169.254": false, "http://[fd00:ec2::254]": false, "ftp://x": false, "http://x?y": false,
	} {
		if err := (Target{URI: uri}).Check(); (err == nil) != want {
			t.Errorf("%q: %v", uri, err)
		}
	}
	for _, uri := range []string{"http://console.aws.amazon.com", "https://console.aws.amazon.com.evil.test", "https://evilconsole.aws.amazon.com", "https://u@console.aws.amazon.com", "https://console.aws.amazon.com:444"} {
		if IsConsole(uri) {
			t.Errorf("%q is taken for the console", uri)
		}
	}
}

func TestSessionName(t *testing.T) {
	seen := map[string]string{}
	for _, user := range []string{"alice", "alice@example.com", "a", "", "a b", "a_b", "a/b", "ünï", "unï", strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("x", 66), "a b c\n"} {
		name := sessionName(user)
		if len(name) < 2 || len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+=,.@-") != "" {
			t.Errorf("%q: %q", user, name)
		}
		if was, twice := seen[name]; twice {
			t.Errorf("%q and %q are both %q", was, user, name)
		}
		seen[name] = user
	}
	if sessionName("alice@example.com") != "alice@example.com" {
		t.Error("a name that could stand as it is does not")
	}
}

// TestKept: the roles that are kept are bounded, and one user's are not another's.
func TestKept(t *testing.T) {
	r := newRig(t)
	a := r.server.Account
	one := a.assume(assumption{reader, "alice"})
	if a.assume(assumption{reader, "alice"}) != one || a.assume(assumption{reader, "bob"}) == one {
		t.Error("roles are shared, or not kept")
	}
	for i := range 2 * maxAssumed {
		a.assume(assumption{reader, fmt.Sprint(i)})
	}
	if n := len(a.assumed); n > maxAssumed {
		t.Errorf("%d are kept", n)
	}
}

// TestTarget: the operation of an event is one that AWS reads, or there is none.
func TestTarget(t *testing.T) {
	r := newRig(t)
	q := asked(t, "s3", "eu-west-1", local, "")
	q.Header.Set(sigv4.TargetHeader, "Harmless.Read")
	q.Header.Set("Content-Type", "text/plain")
	r.do(r.client(), q)
	if got, _ := r.cloud.last(); got.Header.Get(sigv4.TargetHeader) != "" {
		t.Error("an operation passed that no event has")
	}
	r.over()
	if e := r.named("app.session.request"); len(e) != 1 || e[0].Fields["target"] != nil {
		t.Errorf("%+v", e)
	}
}

// TestPartition: no role asks in another partition of AWS than its own.
func TestPartition(t *testing.T) {
	r := newRig(t)
	r.server.Target.URI = consoleURI
	for _, c := range []struct{ region, role string }{{"cn-north-1", reader}, {"us-gov-west-1", reader}, {"eu-west-1", "arn:aws-cn:iam::123456789012:role/reader"}} {
		if resp, body := r.do(r.client(), asked(t, "dynamodb", c.region, c.role, "{}")); resp.StatusCode != 403 || !strings.Contains(body, "another partition") {
			t.Errorf("%v: %s %q", c, resp.Status, body)
		}
	}
	if n, assumed := r.cloud.counts(); n+assumed != 0 {
		t.Errorf("%d requests, %d of STS", n, assumed)
	}
}

// TestRefusedWithin: what is refused in a session is an event, without what may be a secret,
// and of bounded size.
func TestRefusedWithin(t *testing.T) {
	r := newRig(t)
	for _, change := range []func(*http.Request){
		func(q *http.Request) { q.URL.RawQuery = "X-Amz-Signature=topsecret" },
		func(q *http.Request) { q.Header.Set(RoleHeader, reader) },
		func(q *http.Request) { q.Method, q.ContentLength = strings.Repeat("M", 20<<10), -1 },
	} {
		c := r.keep()
		r.do(c, asked(t, "s3", "eu-west-1", local, ""))
		q := asked(t, "s3", "eu-west-1", local, "{}")
		change(q)
		if resp, _ := r.do(c, q); resp.StatusCode != 400 && resp.StatusCode != 403 {
			t.Errorf("%s", resp.Status)
		}
	}
	r.over()
	events := r.named("app.session.request")
	refused := 0
	for _, e := range events {
		if e.Fields["status_code"] != int64(200) {
			refused++
		}
		if all := fmt.Sprintf("%+v", e); strings.Contains(all, "topsecret") || len(all) > 2000 {
			t.Errorf("%.3000s", all)
		}
	}
	if len(events) != 6 || refused != 3 || len(r.uses) != 3 {
		t.Errorf("%d events, %d of refusals; %d sessions", len(events), refused, len(r.uses))
	}
}
