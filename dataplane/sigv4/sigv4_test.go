package sigv4

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

var keys = Keys{"SALLYKEY", "secret"}

const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// noon is when the requests of these tests are made.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// request is one that a client has signed by the SDK's signer.
func request(t *testing.T, change func(*http.Request)) *http.Request {
	t.Helper()
	r := httptest.NewRequest("POST", "http://127.0.0.1:8000/a%20b//c?x=1&y=a%2Fb", strings.NewReader("{}"))
	r.Header.Set("X-Amz-Target", "DynamoDB_20120810.ListTables")
	if change != nil {
		change(r)
	}
	sum := sha256.Sum256([]byte("{}"))
	if err := SignHTTP(r, aws.Credentials{AccessKeyID: keys.AccessKey, SecretAccessKey: keys.Secret}, Scope{"dynamodb", "eu-west-1", hex.EncodeToString(sum[:]), noon}); err != nil {
		t.Fatal(err)
	}
	return r
}

// hashOf is the payload function of a request.
func hashOf(r *http.Request) func() (string, error) {
	return func() (string, error) {
		b, err := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(b))
		sum := sha256.Sum256(b)
		return hex.EncodeToString(sum[:]), err
	}
}

// TestVerify: what was signed passes, and nothing that was changed since.
func TestVerify(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*http.Request)
		later  time.Duration
		want   error
	}{
		"as signed":          {nil, 0, nil},
		"late":               {nil, 14 * time.Minute, nil},
		"too late":           {nil, 16 * time.Minute, errTime},
		"too early":          {nil, -16 * time.Minute, errTime},
		"another method":     {func(r *http.Request) { r.Method = "PUT" }, 0, errSignature},
		"another path":       {func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/", "" }, 0, errSignature},
		"another query":      {func(r *http.Request) { r.URL.RawQuery = "x=2" }, 0, errSignature},
		"another host":       {func(r *http.Request) { r.Host = "evil.test" }, 0, errSignature},
		"another body":       {func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("[]")) }, 0, errSignature},
		"another operation":  {func(r *http.Request) { r.Header.Set("X-Amz-Target", "DynamoDB_20120810.DeleteTable") }, 0, errSignature},
		"operation is gone":  {func(r *http.Request) { r.Header.Del("X-Amz-Target") }, 0, errSignature},
		"another day":        {func(r *http.Request) { r.Header.Set(DateHeader, "20260103T120000Z") }, 24 * time.Hour, errTime},
		"another region":     {edit("eu-west-1", "us-east-1"), 0, errSignature},
		"another service":    {edit("/dynamodb/", "/s3/"), 0, errSignature},
		"another access key": {edit("SALLYKEY", "AKIAEXAMPLE"), 0, errForeign},
		"host not signed":    {edit("host;", ""), 0, errUnsigned},
		"hash not signed":    {func(r *http.Request) { r.Header.Set(PayloadHeader, empty) }, 0, errUnsigned},
		"two signatures":     {func(r *http.Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }, 0, errForm},
		"no signature":       {func(r *http.Request) { r.Header.Del("Authorization") }, 0, errForm},
		"no date":            {func(r *http.Request) { r.Header.Del(DateHeader) }, 0, errTime},
		"header not there":   {edit("SignedHeaders=", "SignedHeaders=a-header;"), 0, errSignature},
		"operation unsigned": {edit("x-amz-target", "x-amz-targex"), 0, errUnsigned},
		"another of AWS's":   {func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/b/k") }, 0, errUnsigned},
		"unsigned is ignored": {func(r *http.Request) {
			r.Header.Set("User-Agent", "aws-cli/2")
			r.Header.Set("Accept-Encoding", "identity")
		}, 0, nil},
	} {
		r := request(t, nil)
		if c.change != nil {
			c.change(r)
		}
		if _, err := keys.Verify(r, noon.Add(c.later), hashOf(r)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// edit changes the text of the Authorization header.
func edit(from, to string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), from, to, 1))
	}
}

// TestVerifyStranger: the body of who does not know the access key is not read.
func TestVerifyStranger(t *testing.T) {
	r := request(t, nil)
	other := Keys{"OTHER", keys.Secret}
	if _, err := other.Verify(r, noon, func() (string, error) { t.Error("the body was read"); return empty, nil }); !errors.Is(err, errForeign) {
		t.Error(err)
	}
	wrong := Keys{keys.AccessKey, "guessed"}
	if _, err := wrong.Verify(r, noon, hashOf(r)); !errors.Is(err, errSignature) {
		t.Error(err)
	}
}

// TestVerifySaidPayload: where the request says its hash, and signs that, the body
// is not read.
func TestVerifySaidPayload(t *testing.T) {
	r := httptest.NewRequest("PUT", "http://127.0.0.1:8000/bucket/a+b%20c", strings.NewReader("data"))
	r.Header.Set(PayloadHeader, "UNSIGNED-PAYLOAD")
	if err := SignHTTP(r, aws.Credentials{AccessKeyID: keys.AccessKey, SecretAccessKey: keys.Secret}, Scope{"s3", "eu-west-1", "UNSIGNED-PAYLOAD", noon}); err != nil {
		t.Fatal(err)
	}
	a, err := keys.Verify(r, noon, func() (string, error) { t.Error("the body was read"); return "", nil })
	if err != nil || a.Service != "s3" || a.Region != "eu-west-1" {
		t.Errorf("%+v, %v", a, err)
	}
}

// documented is the example of AWS's own documentation.
const documented = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, SignedHeaders=content-type;host;x-amz-date, " +
	"Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"

// TestDocumented signs AWS's example: the documentation's signature comes out.
func TestDocumented(t *testing.T) {
	r := httptest.NewRequest("GET", "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08", nil)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	if err := SignHTTP(r, aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}, Scope{"iam", "us-east-1", empty, at}); err != nil {
		t.Fatal(err)
	}
	if got := r.Header.Get("Authorization"); got != documented {
		t.Errorf("\n got %s\nwant %s", got, documented)
	}
	r.Header.Set("Authorization", documented)
	if _, err := (Keys{"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}).Verify(r, at, func() (string, error) { return empty, nil }); err != nil {
		t.Error(err)
	}
}

func TestParse(t *testing.T) {
	a, err := Parse(documented)
	if err != nil || a.AccessKey != "AKIDEXAMPLE" || a.Date != "20150830" || a.Region != "us-east-1" || a.Service != "iam" || !slices.Equal(a.SignedHeaders, []string{"content-type", "host", "x-amz-date"}) {
		t.Errorf("%+v, %v", a, err)
	}
	for name, text := range map[string]string{
		"nothing":            "",
		"basic":              "Basic YWxhZGRpbjpvcGVuc2VzYW1l",
		"version 4a":         strings.Replace(documented, "HMAC", "ECDSA-P256", 1),
		"a region with dots": strings.Replace(documented, "us-east-1", "evil.test", 1),
		"a region with @":    strings.Replace(documented, "us-east-1", "a@b", 1),
		"a service with /":   strings.Replace(documented, "/iam/", "/iam/x/", 1),
		"empty service":      strings.Replace(documented, "/iam/", "//", 1),
		"no ending":          strings.Replace(documented, "aws4_request", "aws4", 1),
		"two credentials":    strings.Replace(documented, "SignedHeaders=content-type;host;x-amz-date", "Credential=A/20150830/us-east-1/iam/aws4_request", 1),
		"four parts":         documented + ", Signature=00",
		"headers disordered": strings.Replace(documented, "content-type;host", "host;content-type", 1),
		"a header twice":     strings.Replace(documented, "host;", "host;host;", 1),
		"upper case":         strings.Replace(documented, "host;", "Host;", 1),
		"a short signature":  documented[:len(documented)-1],
		"a long one":         documented + "0",
		"too long":           strings.Replace(documented, "AKID", strings.Repeat("A", maxAuthorization), 1),
		"a line break":       strings.Replace(documented, "host", "ho\nst", 1),
	} {
		if a, err := Parse(text); err == nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestPayload(t *testing.T) {
	for value, want := range map[string]bool{
		empty: true, "UNSIGNED-PAYLOAD": true, "STREAMING-UNSIGNED-PAYLOAD-TRAILER": true,
		"": false, empty[1:]: false, strings.ToUpper(empty): false, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD": false, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": false, "unsigned-payload": false,
	} {
		if err := Payload(value); (err == nil) != want {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// TestTell: each family of clients finds code and message where it looks.
func TestTell(t *testing.T) {
	const evil = `a<b>&"c"`
	for name, c := range map[string]struct{ service, form, path string }{
		"s3":    {"s3", "", "Error"},
		"ec2":   {"ec2", "application/x-www-form-urlencoded; charset=utf-8", "Response>Errors>Error"},
		"query": {"sts", "application/x-www-form-urlencoded; charset=utf-8", "ErrorResponse>Error"},
		"json":  {"dynamodb", "application/x-amz-json-1.0", ""},
		"rest":  {"lambda", "", ""},
	} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Content-Type", c.form)
		w := httptest.NewRecorder()
		Tell(w, r, Fault{403, AccessDenied, evil, c.service})
		if w.Code != 403 || w.Header().Get("X-Amzn-Errortype") != AccessDenied {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
		code, message := "", ""
		if c.path == "" {
			var j struct {
				Type    string `json:"__type"`
				Message string `json:"message"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &j); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			code, message = j.Type, j.Message
		} else {
			code, message = texts(t, w.Body.String(), c.path)
		}
		if code != AccessDenied || message != evil {
			t.Errorf("%s: %q %q in\n%s", name, code, message, w.Body)
		}
	}
}

// texts reads Code and Message below a path of elements.
func texts(t *testing.T, body, path string) (code, message string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(body))
	var at []string
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return code, message
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, body)
		}
		switch e := tok.(type) {
		case xml.StartElement:
			at = append(at, e.Name.Local)
		case xml.EndElement:
			at = at[:len(at)-1]
		case xml.CharData:
			switch strings.Join(at, ">") {
			case path + ">Code":
				code += string(e)
			case path + ">Message":
				message += string(e)
			}
		}
	}
}

// form is the same grammar, as an expression.
var form = regexp.MustCompile(`^AWS4-HMAC-SHA256 (?s:(.*))$`)

var formParts = map[string]*regexp.Regexp{
	"Credential":    regexp.MustCompile(`^Credential=[A-Za-z0-9_]{1,128}/[0-9]{8}/[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?/[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?/aws4_request$`),
	"SignedHeaders": regexp.MustCompile(`^SignedHeaders=[a-z0-9._-]+(;[a-z0-9._-]+){0,127}$`),
	"Signature":     regexp.MustCompile(`^Signature=[0-9a-f]{64}$`),
}

// formed is the twin of Parse.
func formed(text string) bool {
	m := form.FindStringSubmatch(text)
	if m == nil || len(text) > maxAuthorization || strings.Count(m[1], ",") != 2 {
		return false
	}
	met := map[string]bool{}
	for part := range strings.SplitSeq(m[1], ",") {
		part = strings.Trim(part, " ")
		for name, re := range formParts {
			if re.MatchString(part) {
				met[name] = true
			}
		}
		if headers, ok := strings.CutPrefix(part, "SignedHeaders="); ok {
			list := strings.Split(headers, ";")
			if !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
				return false
			}
		}
	}
	return len(met) == 3
}

// FuzzParse: what is read is what an expression takes, reads the same when it is
// written again, and has a region and a service that are labels.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", documented, strings.ReplaceAll(documented, ", ", ","), strings.ReplaceAll(documented, ", ", " ,  "), strings.Replace(documented, "us-east-1", "-", 1),
		strings.Replace(documented, "Signature=", "signature=", 1), strings.Replace(documented, "iam", "IoTSecuredTunneling", 1), documented + ",", "AWS4-HMAC-SHA256 Signature=,SignedHeaders=,Credential="} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := Parse(text)
		if (err == nil) != formed(text) {
			t.Fatalf("%q: %v, and the expression takes it: %v", text, err, formed(text))
		}
		if err != nil {
			return
		}
		again, err := Parse(a.String())
		if err != nil || again.String() != a.String() {
			t.Fatalf("%q: written %q, read again %q, %v", text, a, again, err)
		}
		if !Word(a.Region) || !Word(a.Service) || strings.ContainsAny(a.Region+a.Service, "./:@?#%\\ \r\n") {
			t.Fatalf("%q: %q %q", text, a.Region, a.Service)
		}
	})
}

// TestOperation: who names an operation is read where AWS reads it, and nowhere else.
func TestOperation(t *testing.T) {
	for form, want := range map[string]string{"application/x-amz-json-1.0": "T.Op", "Application/X-Amz-Json-1.1; charset=utf-8": "T.Op", "application/x-amz-cbor-1.1": "T.Op",
		"application/x-www-form-urlencoded": "", "text/plain": "", "": "", "application/json": ""} {
		if got := Operation(http.Header{"Content-Type": {form}, TargetHeader: {"T.Op"}}); got != want {
			t.Errorf("%q: %q", form, got)
		}
	}
	if got := Operation(http.Header{"Content-Type": {"application/x-amz-json-1.0", "text/plain"}, TargetHeader: {"T.Op"}}); got != "" {
		t.Errorf("of two forms: %q", got)
	}
	for value, want := range map[string]bool{"": false, "close": false, "Keep-Alive": false, "keep-alive, close": false, "x-amz-target": true, "close,authorization": true, "upgrade": true} {
		if got := HopByHop(http.Header{"Connection": {"close", value}}); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}
