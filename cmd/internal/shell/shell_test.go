package shell

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
)

func TestWord(t *testing.T) {
	for in, want := range map[string]string{
		"":              "''",
		"plain-1.2/x:y": "plain-1.2/x:y",
		"a b":           "'a b'",
		"it's":          `'it'\''s'`,
		"$(id)":         "'$(id)'",
		"~root":         "'~root'",
		"A=1":           "'A=1'",
	} {
		if got := Word(in); got != want {
			t.Errorf("Word(%q) = %s, want %s", in, got, want)
		}
	}
}

// read splits a line as POSIX.1 2.2 says, knowing only what Word may write: it
// is the oracle of the fuzz test, and is itself held against a real shell.
func read(line string) (words []string, ok bool) {
	var w strings.Builder
	inside, begun := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case inside && c == '\'':
			inside = false
		case inside:
			w.WriteByte(c)
		case c == '\'':
			inside, begun = true, true
		case c == '\\' && i+1 < len(line):
			i++
			w.WriteByte(line[i])
			begun = true
		case c == ' ':
			if begun {
				words = append(words, w.String())
			}
			w.Reset()
			begun = false
		case strings.IndexByte("|&;<>()$`\"*?[#~=%\t\n\r", c) >= 0 && c != '%':
			return nil, false // the shell would do something here
		default:
			w.WriteByte(c)
			begun = true
		}
	}
	if begun {
		words = append(words, w.String())
	}
	return words, !inside
}

// FuzzZ19_Word: what was written is read back, and nothing is done.
func FuzzZ19_Word(f *testing.F) {
	for _, s := range []string{"", "a", "a b", "'", "''", `\`, `\'`, "$(id)", "`id`", "a\nb", "-n", "\x80", "'; id; '"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, ok := read("x " + Word(s) + " y")
		if !ok || len(words) != 3 || words[1] != s {
			t.Fatalf("%q is written %s and read %q", s, Word(s), words)
		}
	})
}

func TestZ19_WordInRealShell(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		peers.Missing(t, "sh")
	}
	for _, s := range []string{"", "a b", "it's", `\`, `\\'`, "$(id)", "`id`", "a\nb\n", "*", "~", "~root", "A=1", "#", "!x", "{a,b}", "\x01\x7f", "é\u202e", "-n"} {
		out, err := exec.Command(sh, "-c", "printf %s "+Word(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q came back as %q: %v", s, out, err)
		}
		out, err = exec.Command(sh, "-c", "export X="+Word(s)+`; printf %s "$X"`).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q in a variable came back as %q: %v", s, out, err)
		}
	}
}
