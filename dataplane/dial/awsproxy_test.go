package dial

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sigv4"
)

const awsTestRole = "arn:aws:iam::123456789012:role/reader"

// awsProxy starts a proxy to an application whose agent is h.
func awsProxy(t *testing.T, h http.HandlerFunc) (addr string, keys sigv4.Keys) {
	t.Helper()
	far := httptest.NewServer(h)
	t.Cleanup(far.Close)
	return serveAWS(t, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", far.Listener.Addr().String())
	})
}

func serveAWS(t *testing.T, dial func(context.Context) (net.Conn, error)) (addr string, keys sigv4.Keys) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	keys = NewAWSKeys()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- (&AWSProxy{Listener: l, Host: "cloud.app.gw.test", Role: awsTestRole, Keys: keys, Dial: dial}).Serve(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), keys
}

// awsAsk sends a request that is signed with the keys, changed afterwards.
func awsAsk(t *testing.T, addr string, keys sigv4.Keys, body string, change func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("POST", "http://"+addr+"/a%20b?x=1", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.0")
	sum := sha256.Sum256([]byte(body))
	err = sigv4.SignHTTP(req, aws.Credentials{AccessKeyID: keys.AccessKey, SecretAccessKey: keys.Secret},
		sigv4.Scope{Service: "dynamodb", Region: "eu-west-1", Payload: hex.EncodeToString(sum[:]), Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// TestAWSProxy: the agent gets the request, the role, and what the body is.
func TestAWSProxy(t *testing.T) {
	for _, body := range []string{"{}", ""} {
		sum := sha256.Sum256([]byte(body))
		addr, keys := awsProxy(t, func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil || string(b) != body || r.Host != "cloud.app.gw.test" || r.URL.RequestURI() != "/a%20b?x=1" || r.ContentLength != int64(len(body)) {
				t.Errorf("%s %s %q, %v", r.Host, r.URL.RequestURI(), b, err)
			}
			if got := r.Header[awsRoleHeader]; len(got) != 1 || got[0] != awsTestRole || r.Header.Get(sigv4.PayloadHeader) != hex.EncodeToString(sum[:]) {
				t.Errorf("%v", r.Header)
			}
			io.WriteString(w, "answer")
		})
		if resp, got := awsAsk(t, addr, keys, body, func(r *http.Request) { r.Header.Set(awsRoleHeader, "arn:aws:iam::123456789012:role/admin") }); resp.StatusCode != 200 || got != "answer" {
			t.Errorf("%s %q", resp.Status, got)
		}
	}
}

// TestAWSProxyStrangers: another user of the machine, or a page in a browser, has the
// port and not the keys. Nothing of theirs reaches the agent.
func TestAWSProxyStrangers(t *testing.T) {
	addr, keys := awsProxy(t, func(http.ResponseWriter, *http.Request) { t.Error("the agent was asked") })
	for name, c := range map[string]struct {
		keys   sigv4.Keys
		change func(*http.Request)
	}{
		"other keys":         {NewAWSKeys(), nil},
		"a guessed secret":   {sigv4.Keys{AccessKey: keys.AccessKey, Secret: "guessed"}, nil},
		"no signature":       {keys, func(r *http.Request) { r.Header.Del("Authorization") }},
		"another body":       {keys, func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("[]")), 2 }},
		"another path":       {keys, func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/", "" }},
		"another operation":  {keys, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }},
		"another name of us": {keys, func(r *http.Request) { r.Host = "evil.test" }},
		"an old one":         {keys, func(r *http.Request) { r.Header.Set(sigv4.DateHeader, "20200101T000000Z") }},
		"a header unsigned":  {keys, func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/theirs/secret") }},
		"a header to drop":   {keys, func(r *http.Request) { r.Header.Set("Connection", "x-amz-target") }},
		"a presigned link":   {keys, func(r *http.Request) { r.URL.RawQuery = "X-Amz-Signature=0" }},
		"a broken query":     {keys, func(r *http.Request) { r.URL.RawQuery = "%zz" }},
	} {
		if resp, body := awsAsk(t, addr, c.keys, "{}", c.change); resp.StatusCode != 403 || !strings.Contains(body, "sally") || resp.Header.Get("X-Amzn-Errortype") != "AccessDenied" {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
	}
}

// TestAWSProxyLarge: a body is kept up to a bound.
func TestAWSProxyLarge(t *testing.T) {
	addr, keys := awsProxy(t, func(http.ResponseWriter, *http.Request) { t.Error("the agent was asked") })
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	req, err := http.NewRequest("POST", "http://"+addr+"/", strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	err = sigv4.SignHTTP(req, aws.Credentials{AccessKeyID: keys.AccessKey, SecretAccessKey: keys.Secret}, sigv4.Scope{Service: "lambda", Region: "eu-west-1", Payload: "x", Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	req.Body, req.ContentLength = io.NopCloser(io.LimitReader(endless{}, maxAWSBody+1)), maxAWSBody+1
	go req.Write(conn) // ends with the connection
	b := make([]byte, 64)
	if n, err := io.ReadAtLeast(conn, b, 12); err != nil || !bytes.HasPrefix(b[:n], []byte("HTTP/1.1 403")) {
		t.Errorf("%q, %v", b[:n], err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestAWSProxyFailure: the reason is told such that a client does not ask again.
func TestAWSProxyFailure(t *testing.T) {
	why := &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "your login expired", Hint: "sally login"}
	addr, keys := serveAWS(t, func(context.Context) (net.Conn, error) { return nil, why })
	if resp, body := awsAsk(t, addr, keys, "{}", nil); resp.StatusCode != 403 || !strings.Contains(body, why.Fact) || !strings.Contains(body, why.Hint) {
		t.Errorf("%s %q", resp.Status, body)
	}
	addr, keys = serveAWS(t, func(context.Context) (net.Conn, error) { return nil, errors.New("secret detail") })
	if resp, body := awsAsk(t, addr, keys, "{}", nil); resp.StatusCode != 502 || strings.Contains(body, "secret") {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestAWSProxyChunked: a body that comes in pieces goes on with its length, of more
// clients than large bodies are held at a time.
func TestAWSProxyChunked(t *testing.T) {
	addr, keys := awsProxy(t, func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != "{}" || r.ContentLength != 2 {
			t.Errorf("%q of %d, %v", b, r.ContentLength, err)
		}
		io.WriteString(w, "answer")
	})
	for range 2 * largeAWSBodies {
		if got, err := awsChunked(addr, keys, "{}"); err != nil || got != "answer" {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

// awsChunked sends a body in pieces, and returns the text of an answer that is good.
func awsChunked(addr string, keys sigv4.Keys, body string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", "http://"+addr+"/", io.MultiReader(strings.NewReader(body)))
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(body))
	err = sigv4.SignHTTP(req, aws.Credentials{AccessKeyID: keys.AccessKey, SecretAccessKey: keys.Secret},
		sigv4.Scope{Service: "dynamodb", Region: "eu-west-1", Payload: hex.EncodeToString(sum[:]), Time: time.Now()})
	if err != nil {
		return "", err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

// TestAWSProxySmallBesideLarge: small bodies of unknown size waited until large ones,
// as many as are held at a time, were answered.
func TestAWSProxySmallBesideLarge(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	var held atomic.Int64
	addr, keys := awsProxy(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			t.Error(err)
		}
		if n > smallAWSBody {
			if held.Add(1) > largeAWSBodies {
				t.Error("more large bodies than are to be held")
			}
			arrived <- struct{}{}
			<-release
			held.Add(-1)
		}
		io.WriteString(w, "answer")
	})
	var large sync.WaitGroup
	for range largeAWSBodies + 2 {
		large.Go(func() {
			if got, err := awsChunked(addr, keys, strings.Repeat("x", smallAWSBody+1)); err != nil || got != "answer" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	for range largeAWSBodies {
		<-arrived
	}
	if got, err := awsChunked(addr, keys, strings.Repeat("x", smallAWSBody)); err != nil || got != "answer" {
		t.Errorf("%q, %v", got, err)
	}
	close(release)
	for range 2 {
		<-arrived
	}
	large.Wait()
}
