package aws

import (
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestSTSSilent: an STS that takes a request and says nothing is given up; the
// operator is told, and the user that it is no refusal.
func TestSTSSilent(t *testing.T) {
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		io.Copy(io.Discard, q.Body)
		<-q.Context().Done()
	}))
	t.Cleanup(silent.Close)
	r := newRig(t)
	var log strings.Builder
	client := r.server.Target.STSClient(silent.URL, nil)
	t.Cleanup(client.CloseIdleConnections)
	if client.Timeout <= 0 || client.Timeout > stsTimeout {
		t.Fatalf("a silent STS is waited for %s", client.Timeout)
	}
	client.Timeout = 10 * time.Millisecond // it never answers: however soon
	a := r.server.Account
	a.STS, a.Config.HTTPClient, a.Log = silent.URL, client, slog.New(slog.NewTextHandler(&log, nil))
	resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", reader, "{}"))
	r.over()
	if resp.StatusCode != 503 || !strings.Contains(body, "the agent cannot act as "+reader) || !strings.Contains(log.String(), "credentials for AWS") {
		t.Errorf("%s %q; the log says %s", resp.Status, body, &log)
	}
}

// TestSTSBroken: a failure of STS is no denial.
func TestSTSBroken(t *testing.T) {
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, `<ErrorResponse><Error><Type>Receiver</Type><Code>InternalFailure</Code><Message>x</Message></Error></ErrorResponse>`)
	}))
	t.Cleanup(broken.Close)
	r := newRig(t)
	r.server.Account.STS = broken.URL
	if resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", reader, "{}")); resp.StatusCode != 503 || !strings.Contains(body, "InternalFailure") {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestSTSBusy: one that is asked too much has denied nothing.
func TestSTSBusy(t *testing.T) {
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message></Error></ErrorResponse>`)
	}))
	t.Cleanup(busy.Close)
	r := newRig(t)
	r.server.Account.STS = busy.URL
	if resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", reader, "{}")); resp.StatusCode != 503 || !strings.Contains(body, "Throttling") {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestNoSTS: without an STS the agent's own role is the only one.
func TestNoSTS(t *testing.T) {
	r := newRig(t)
	r.server.Account.NoSTS = true
	if resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", reader, "{}")); resp.StatusCode != 403 || !strings.Contains(body, "the agent cannot act as "+reader) {
		t.Errorf("%s %q", resp.Status, body)
	}
	if resp, body := r.do(r.client(), asked(t, "dynamodb", "eu-west-1", local, "{}")); resp.StatusCode != 200 {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestSTSClient: STS on the target's host is known by the target's CA, any other is
// not; nothing leads the client on, nor to where clouds keep their machines' secrets.
func TestSTSClient(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		http.Redirect(w, q, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	for name, c := range map[string]struct {
		target Target
		at     string
		want   string // of the error; "" for an answer
	}{
		"the target's":       {Target{URI: srv.URL, Roots: pool}, srv.URL, ""},
		"by its name":        {Target{URI: srv.URL, Roots: pool, ServerName: "example.com"}, srv.URL, ""},
		"unchecked":          {Target{URI: srv.URL, Insecure: true}, srv.URL, ""},
		"another port of it": {Target{URI: "https://127.0.0.1:1", Roots: pool}, srv.URL, ""},
		"of no known CA":     {Target{URI: srv.URL}, srv.URL, "certificate"},
		"another host's":     {Target{URI: "https://tables.test", Roots: pool, Insecure: true}, srv.URL, "certificate"},
		"metadata":           {Target{URI: "http://localhost:8000"}, "http://[::ffff:169.254.169.254]", "not the address of a server of AWS"},
	} {
		client := c.target.STSClient(c.at, nil)
		resp, err := client.Get(c.at)
		if err == nil {
			resp.Body.Close()
		}
		client.CloseIdleConnections()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || err == nil && resp.StatusCode != http.StatusTemporaryRedirect {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
}

// TestSTSRegion: where STS is asked is the agent's to say, and of the role's partition.
func TestSTSRegion(t *testing.T) {
	for _, c := range []struct{ role, own, want string }{
		{reader, "", "us-east-1"}, {reader, "eu-central-1", "eu-central-1"}, {reader, "cn-north-1", "us-east-1"}, {reader, "nowhere", "us-east-1"},
		{"arn:aws-cn:iam::123456789012:role/r", "", "cn-north-1"}, {"arn:aws-cn:iam::123456789012:role/r", "eu-west-1", "cn-north-1"}, {"arn:aws-cn:iam::123456789012:role/r", "cn-northwest-1", "cn-northwest-1"},
		{"arn:aws-us-gov:iam::123456789012:role/r", "us-east-1", "us-gov-west-1"},
	} {
		if got := stsRegion(c.role, c.own); got != c.want {
			t.Errorf("%v: %s", c, got)
		}
	}
	// A request for another region asks for nothing new.
	r := newRig(t)
	for _, region := range []string{"eu-wst-1", "eu-west-1"} {
		if resp, body := r.do(r.client(), asked(t, "dynamodb", region, reader, "{}")); resp.StatusCode != 200 {
			t.Errorf("%s: %s %q", region, resp.Status, body)
		}
	}
	if _, assumed := r.cloud.counts(); assumed != 1 {
		t.Errorf("STS was asked %d times", assumed)
	}
}

func TestCheckSTS(t *testing.T) {
	for text, want := range map[string]bool{"https://sts.internal": true, "http://localhost:8001": true, "http://127.0.0.1:8001": true, "http://[::1]:1": true,
		"http://sts.internal": false, "http://10.0.0.1": false, "https://169.254.169.254": false, "ftp://localhost": false} {
		if err := CheckSTS(text); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}
