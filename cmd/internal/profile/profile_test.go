package profile

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

var alice = Profile{WebProxyAddr: "gw.test:8443", SSHProxyAddr: "gw.test:8443", User: "alice", Cluster: "gw.test", TLSRouting: true, AuthConnector: "local", CAPins: []string{"sha256:00"}}

// TestA30_Address: an address ends up in the scripts and configurations that we write. What
// could say more there than an address is none.
func TestA30_Address(t *testing.T) {
	for in, want := range map[string]string{
		"gw.test": "gw.test:443", "gw.test:8443": "gw.test:8443", "https://gw.test": "gw.test:443", "https://gw.test:1/": "gw.test:1",
		"127.0.0.1:8443": "127.0.0.1:8443", "::1": "[::1]:443", "[::1]": "[::1]:443", "[::1]:8443": "[::1]:8443", "localhost": "localhost:443",
		"": "", ":443": "", "a b": "", "a/b": "", "..": "", "..:443": "", "../x:443": "", ".ssh": "", "-o:1": "", "gw.test:": "", "gw.test:http": "", "gw.test:0": "", "gw.test:70000": "",
		"user@gw.test": "", "http://gw.test": "", "gw.test:1:2": "", "a\n": "", "a\x00": "", "*": "", "a,b": "", strings.Repeat("a", 300): "",
		"gw.test\r\nProxyCommand x": "", "gw.test;x": "", "gw.test\"": "", "$(x)": "", "`x`": "", "gw.test\x1b[2J": "", "gw.test\u0085": "", "gw.test\u202e": "",
	} {
		got, err := Address(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("Address(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

// FuzzAddress: what is accepted names files inside the home directory only, and
// is accepted again as it is.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"gw.test", "[::1]:1", "..", "https://a:1/", "a\x00b", "%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := Address(s)
		if err != nil {
			return
		}
		if again, err := Address(addr); err != nil || again != addr {
			t.Fatalf("%q, then %q %v", addr, again, err)
		}
		home, p := Dir("/home/x/.sally"), Profile{WebProxyAddr: addr, User: "u", Cluster: "c"}
		for _, path := range []string{home.KeyDir(p), home.KeyPath(p, ".key"), home.CAsPath(p), home.SSHCertPath(p), home.DBDir(p)} {
			if !strings.HasPrefix(path, "/home/x/.sally/keys/") || path == "/home/x/.sally/keys/" {
				t.Fatalf("%q leads to %s", addr, path)
			}
		}
	})
}

func TestSaveLoad(t *testing.T) {
	d := Dir(t.TempDir())
	if _, err := d.Load(""); !errors.Is(err, ErrNotLoggedIn) {
		t.Fatalf("empty home: %v", err)
	}
	bob := alice
	bob.WebProxyAddr, bob.User, bob.Cluster = "[::1]:443", "bob", "other.test"
	for _, f := range []Profile{alice, bob} {
		if err := d.Save(f); err != nil {
			t.Fatal(err)
		}
	}
	for host, want := range map[string]Profile{"": bob, "gw.test": alice, "::1": bob} {
		if got, err := d.Load(host); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Load(%q) = %+v, %v", host, got, err)
		}
	}
	os.WriteFile(filepath.Join(string(d), "broken.yaml"), []byte("web_proxy_addr: [\n"), 0o600)
	list, err := d.List()
	if err != nil || len(list) != 2 || list[0].User != "bob" || list[1].User != "alice" {
		t.Errorf("List: %+v, %v", list, err)
	}
	if _, err := d.Load("../gw.test"); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("a path for a name: %v", err)
	}
}

// TestA29_NamesStayInside: a gateway tells the user's and the cluster's name;
// they never lead to other files.
func TestA29_NamesStayInside(t *testing.T) {
	for _, name := range []string{"", "..", "../../.ssh/authorized_keys", "a/b", `a\b`, ".ssh", "a\nb", "a b", "a,b", "*", "a\x00", "-oProxyCommand=x", `a"b`, "$HOME", "`id`", "%h", strings.Repeat("a", 201)} {
		user, cluster := alice, alice
		user.User, cluster.Cluster = name, name
		for _, f := range []Profile{user, cluster} {
			d := Dir(t.TempDir())
			if err := d.Save(f); !errors.Is(err, sallyport.ErrInvalid) {
				t.Errorf("saved %q: %v", name, err)
			}
			if files, _ := os.ReadDir(string(d)); len(files) > 0 {
				t.Errorf("%q left files", name)
			}
		}
	}
	d := Dir(t.TempDir())
	os.WriteFile(filepath.Join(string(d), "gw.test.yaml"), []byte("web_proxy_addr: gw.test:443\nuser: ../../x\ncluster: c\n"), 0o600)
	if _, err := d.Load("gw.test"); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("loaded: %v", err)
	}
}

func TestModes(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "home"))
	if err := errors.Join(d.Save(alice), WriteFile(d.KeyPath(alice, ".key"), []byte("k")), d.SetKnownHosts(alice, []string{"x"})); err != nil {
		t.Fatal(err)
	}
	filepath.WalkDir(string(d), func(path string, e os.DirEntry, err error) error {
		info, _ := e.Info()
		want := os.FileMode(0o600)
		if e.IsDir() {
			want = 0o700
		}
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		return nil
	})
}

func TestEditFile(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "dotfiles"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(real, []byte("a\n"), 0o644), os.Chmod(real, 0o640), os.Symlink(real, link)); err != nil {
		t.Fatal(err)
	}
	add := func(old string) string { return old + "b\n" }
	if err := EditFile(link, add); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(link)
	if err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v %v", info, err)
	}
	b, _ := os.ReadFile(real)
	if info, _ = os.Stat(real); string(b) != "a\nb\n" || info.Mode().Perm() != 0o640 {
		t.Errorf("%q, mode %v", b, info.Mode())
	}
	before := info.ModTime()
	if err := EditFile(link, func(old string) string { return old }); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(real); after.ModTime() != before {
		t.Error("written without a change")
	}
	if err := EditFile(real, func(string) string { return "" }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(real); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty file is left: %v", err)
	}
	if err := EditFile(filepath.Join(dir, "none"), func(string) string { return "" }); err != nil {
		t.Errorf("nothing of nothing: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestEditFileElsewhere: a link that leads to nothing yet stays one, and what is
// no file is not replaced by one.
func TestEditFileElsewhere(t *testing.T) {
	dir := t.TempDir()
	link, target := filepath.Join(dir, "a", "link"), filepath.Join(dir, "b", "target")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Mkdir(filepath.Join(dir, "b"), 0o700), os.Symlink("../b/target", link)); err != nil {
		t.Fatal(err)
	}
	add := func(old string) string { return old + "b\n" }
	if err := EditFile(link, add); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(target); string(b) != "b\n" {
		t.Errorf("%q behind the link: %v", b, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v %v", info, err)
	}
	circle := filepath.Join(dir, "circle")
	if err := os.Symlink("circle", circle); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket") // a device, such as /dev/null, would be gone if it were replaced
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, path := range []string{socket, dir, circle} {
		before, berr := os.Lstat(path)
		if err := EditFile(path, add); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
		if err := EditFile(path, func(old string) string { return old }); path != circle && err != nil {
			t.Errorf("nothing to change in %s: %v", path, err)
		}
		if after, err := os.Lstat(path); berr != nil || err != nil || after.Mode() != before.Mode() {
			t.Errorf("%s was replaced: %v %v", path, after, err)
		}
	}
}

// TestListAnywhere: a directory's name is no pattern.
func TestListAnywhere(t *testing.T) {
	for _, name := range []string{"x[ab]", "x[b", "*"} {
		d := Dir(filepath.Join(t.TempDir(), name))
		bob := alice
		bob.WebProxyAddr, bob.SSHProxyAddr = "other.test:443", "other.test:443"
		if err := errors.Join(d.Save(bob), d.Save(alice)); err != nil {
			t.Fatal(err)
		}
		if all, err := d.List(); err != nil || len(all) != 2 {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
}

// TestNamed: another port of the same host is another gateway.
func TestNamed(t *testing.T) {
	d := Dir(t.TempDir())
	if err := d.Save(alice); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(alice.WebProxyAddr)
	for _, typed := range []string{host, host + ":" + port} {
		if f, err := d.Named(typed); err != nil || f.WebProxyAddr != alice.WebProxyAddr {
			t.Errorf("%s: %+v, %v", typed, f, err)
		}
	}
	for _, typed := range []string{host + ":1", "elsewhere.test"} {
		if _, err := d.Named(typed); !errors.Is(err, sallyport.ErrUnauthorized) {
			t.Errorf("%s: %v", typed, err)
		}
	}
}

func TestKnownHosts(t *testing.T) {
	mine := KnownHostsLine(alice, "ssh-ed25519 AAAA\n")
	if mine != "@cert-authority gw.test,gw.test,*.gw.test ssh-ed25519 AAAA type=host" {
		t.Errorf("line: %s", mine)
	}
	const other = "github.com ssh-ed25519 BBBB\n@cert-authority gw.test,other,*.other ssh-rsa CCCC"
	for _, tt := range []struct{ in, want string }{
		{"", mine + "\n"},
		{other, other + "\n" + mine + "\n"},
		{"@cert-authority gw.test,gw.test,*.gw.test old\n" + other + "\n", other + "\n" + mine + "\n"},
	} {
		if got := withKnown(tt.in, alice, []string{mine}); got != tt.want {
			t.Errorf("%q became %q, want %q", tt.in, got, tt.want)
		}
	}
}

// FuzzZ19_KnownHosts: others' lines stay as they are, ours are there once, and
// go again.
func FuzzZ19_KnownHosts(f *testing.F) {
	f.Add("")
	f.Add("a b c\n@cert-authority gw.test,gw.test,x y\nz")
	f.Add("\r\n#\n@cert-authority gw.test,gw.test,")
	f.Fuzz(func(t *testing.T, text string) {
		mine := KnownHostsLine(alice, "ssh-ed25519 AAAA")
		got := withKnown(text, alice, []string{mine})
		if strings.Count("\n"+got, "\n"+mine+"\n") != 1 {
			t.Fatalf("%q: not there once in %q", text, got)
		}
		foreign := func(s string) (out []string) {
			for line := range strings.Lines(s) {
				if !strings.HasPrefix(line, knownPrefix(alice)) {
					out = append(out, strings.TrimSuffix(line, "\n"))
				}
			}
			return out
		}
		if !slices.Equal(foreign(text), foreign(got)) {
			t.Fatalf("%q became %q", text, got)
		}
		if gone := withKnown(got, alice, nil); !slices.Equal(foreign(gone), foreign(text)) || strings.Contains("\n"+gone, "\n"+mine) {
			t.Fatalf("not removed: %q", gone)
		}
	})
}

func TestHome(t *testing.T) {
	t.Setenv("HOME", "/home/x")
	for _, tt := range []struct{ sally, teleport, want string }{
		{"", "", "/home/x/.sally"}, {"/a", "", "/a"}, {"", "/b", "/b"}, {"/a", "/b", "/a"}, {"/a/../c", "", "/c"},
	} {
		t.Setenv("SALLY_HOME", tt.sally)
		t.Setenv("TELEPORT_HOME", tt.teleport)
		if got, err := Home(); err != nil || string(got) != tt.want {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
}
