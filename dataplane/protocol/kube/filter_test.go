package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// onlyDev shows what is in namespace dev, or is called shared.
func onlyDev(namespace, name string) bool { return namespace == "dev" || name == "shared" }

// run filters a body.
func run(body string, watch bool) (string, error) {
	res := &http.Response{Header: http.Header{}, Body: io.NopCloser(iotestOneByte{strings.NewReader(body)})}
	filter(res, watch, onlyDev, holding{})
	out, err := io.ReadAll(res.Body)
	return string(out), err
}

// iotestOneByte gives few bytes at a time.
type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 7)]) }

const (
	podA  = `{"metadata":{"name":"a","namespace":"dev"},"spec":{"x":1}}`
	podB  = `{"metadata":{"name":"b","namespace":"prod"}}`
	podC  = `{"metadata":{"name":"shared","namespace":"prod","labels":{"metadata":"x"}}}`
	node  = `{"metadata":{"name":"n"}}`
	nodeS = `{"metadata":{"name":"shared"}}`
)

func TestFilterList(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[` + podA + `,` + podB + `,` + podC + `]}`,
			`{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[` + podA + `,` + podC + `]}`},
		{`{"items":[` + podB + `]}`, `{"items":[]}`},
		{`{"items":[],"kind":"PodList"}`, `{"items":[],"kind":"PodList"}`},
		{`{"kind":"PodList","items":null}`, `{"kind":"PodList","items":null}`},
		{`{"items":[` + node + `,` + nodeS + `]}`, `{"items":[` + nodeS + `]}`},
		{`{"metadata":{"continue":"","remainingItemCount":12},"items":[]}`, `{"metadata":{"continue":""},"items":[]}`},
		{`{"metadata":null,"items":[]}`, `{"metadata":null,"items":[]}`},
		{`{"kind":"Table","columnDefinitions":[{"name":"Name"}],"rows":[{"cells":["a"],"object":` + podA + `},{"cells":["b"],"object":` + podB + `},{"cells":["c"]},{"cells":["d"],"object":null}]}`,
			`{"kind":"Table","columnDefinitions":[{"name":"Name"}],"rows":[{"cells":["a"],"object":` + podA + `}]}`},
		// Objects without a name that can be read are not shown.
		{`{"items":[{},null,1,"x",[],{"metadata":null},{"metadata":{"namespace":"dev"}},{"metadata":{"name":7,"namespace":"dev"}},{"metadata":{"name":"a","namespace":["dev"]}}]}`, `{"items":[]}`},
		// The case of letters counts: another reader would not take these for the name.
		{`{"items":[{"metadata":{"name":"b","namespace":"prod","Namespace":"dev"},"Metadata":{"name":"shared"}}]}`, `{"items":[]}`},
		// Each list is filtered, however many there are.
		{`{"items":[` + podA + `],"items":[` + podB + `]}`, `{"items":[` + podA + `],"items":[]}`},
	} {
		got, err := run(tt.in, false)
		if err != nil || got != tt.want {
			t.Errorf("%s:\ngot  %s %v\nwant %s", tt.in, got, err, tt.want)
		}
	}
}

func TestFilterWatch(t *testing.T) {
	in := `{"type":"ADDED","object":` + podA + "}\n" + `{"type":"MODIFIED","object":` + podB + "}\n" + `{"type":"DELETED","object":` + podC + "}\n" +
		`{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9"}}}` + "\n" +
		`{"type":"ADDED","object":{"kind":"Table","rows":[{"object":` + podB + `}]}}` + "\n" +
		`{"type":"ADDED","object":{"kind":"Table","rows":[{"object":` + podB + `},{"object":` + podA + `}]}}` + "\n" +
		`{"type":"ERROR","object":{"kind":"Status","code":410}}` + "\n" + `{"type":"NEW","object":` + podB + "}\n"
	want := `{"type":"ADDED","object":` + podA + "}\n" + `{"type":"DELETED","object":` + podC + "}\n" +
		`{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9"}}}` + "\n" +
		`{"object":{"kind":"Table","rows":[{"object":` + podA + `}]},"type":"ADDED"}` + "\n" +
		`{"type":"ERROR","object":{"kind":"Status","code":410}}` + "\n"
	if got, err := run(in, true); err != nil || got != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, got, want)
	}
}

// TestHostileAnswers: an API server that has been taken over shows no more than
// its answer says, ends, and is bounded.
func TestHostileAnswers(t *testing.T) {
	for _, in := range []string{
		"", "null", "[]", `"x"`, "{", `{"items":`, `{"items":[`, `{"items":[` + podA, `{"items":[` + podA + `]`, `{"items":{}}`, `{"items":[]}{"items":[` + podB + `]}`,
		`{"metadata":{"continue":"x"},"items":[]}`, `{"metadata":{"continue":{}},"items":[]}`, `{"metadata":[],"items":[]}`, `{"items":[]} x`, `{"items" []}`, `{items:[]}`, "\xff\xfe", `{"a":` + strings.Repeat("[", 20000),
	} {
		if out, err := run(in, false); err == nil {
			t.Errorf("%.40q is taken: %q", in, out)
		}
	}
	for _, in := range []string{"x", "{", `{"object":` + podA + `}`, `{"type":1}`, "[]", `{"type":"ADDED","object":{"kind":"Table","rows":1}}`} {
		if out, err := run(in, true); err == nil {
			t.Errorf("watch: %.40q is taken: %q", in, out)
		}
	}
	// A string that never ends takes bounded memory and time.
	endless := io.MultiReader(strings.NewReader(`{"items":[{"metadata":{"name":"`), endlessA{})
	res := &http.Response{Header: http.Header{}, Body: io.NopCloser(endless)}
	filter(res, false, onlyDev, holding{})
	if _, err := io.Copy(io.Discard, res.Body); !errors.Is(err, errObject) {
		t.Errorf("an endless object: %v", err)
	}
}

type endlessA struct{}

func (endlessA) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func TestNarrow(t *testing.T) {
	for accept, want := range map[string]string{
		"": "application/json",
		"application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json": "application/json; as=Table; g=meta.k8s.io; v=v1,application/json; as=Table; g=meta.k8s.io; v=v1beta1,application/json",
		"application/vnd.kubernetes.protobuf":                                       "application/json",
		"application/vnd.kubernetes.protobuf,application/json":                      "application/json",
		"application/cbor, application/json;as=PartialObjectMetadataList;v=v1, */*": "application/json; as=PartialObjectMetadataList; v=v1",
		"application/yaml": "application/json",
	} {
		r := &request{query: url.Values{"includeObject": {"None"}}}
		h := http.Header{"Accept": {accept}, "Accept-Encoding": {"gzip"}}
		narrow(h, r)
		if got := h.Get("Accept"); got != want || h.Get("Accept-Encoding") != "" || r.query.Get("includeObject") != "Metadata" {
			t.Errorf("%q: %q, %v %v", accept, got, h, r.query)
		}
	}
}

// FuzzFilter: what comes out is what encoding/json and the same rule make of the
// whole, or nothing.
func FuzzFilter(f *testing.F) {
	f.Add([]byte(`{"kind":"PodList","items":[`+podA+`,`+podB+`]}`), false)
	f.Add([]byte(`{"rows":[{"object":`+podB+`},{"object":`+podC+`}]}`), false)
	f.Add([]byte(`{"type":"ADDED","object":`+podA+"}\n"+`{"type":"ADDED","object":`+podB+"}\n"), true)
	f.Fuzz(func(t *testing.T, body []byte, watch bool) {
		out, err := run(string(body), watch)
		if err != nil || watch {
			// What was passed before the fault holds nothing that is hidden.
			if bytes.Contains([]byte(out), []byte(`"prod"`)) && !bytes.Contains(body, []byte(`shared`)) && strings.Count(string(body), "prod") == 1 && bytes.Contains(body, []byte(podB)) {
				t.Fatalf("hidden object in %q of %q", out, body)
			}
			return
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%q is not JSON: %v", out, err)
		}
		for _, list := range []string{"items", "rows"} {
			all, _ := got[list].([]any)
			for _, o := range all {
				if list == "rows" {
					row, _ := o.(map[string]any)
					o = row["object"]
				}
				object, _ := o.(map[string]any)
				meta, _ := object["metadata"].(map[string]any)
				name, _ := meta["name"].(string)
				namespace, _ := meta["namespace"].(string)
				if !onlyDev(namespace, name) {
					t.Fatalf("shown: %s of %q", fmt.Sprint(o), body)
				}
			}
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	var list bytes.Buffer
	list.WriteString(`{"kind":"PodList","items":[`)
	for i := range 1000 {
		if i > 0 {
			list.WriteByte(',')
		}
		fmt.Fprintf(&list, `{"metadata":{"name":"p%d","namespace":"%s","labels":{"a":"b"}},"spec":{"containers":[{"name":"a","image":"%s"}]}}`, i, []string{"dev", "prod"}[i%2], strings.Repeat("x", 1500))
	}
	list.WriteString(`]}`)
	b.SetBytes(int64(list.Len()))
	for b.Loop() {
		res := &http.Response{Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(list.Bytes()))}
		filter(res, false, onlyDev, holding{})
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			b.Fatal(err)
		}
	}
}
