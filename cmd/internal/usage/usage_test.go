package usage

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport"
)

type grammar struct {
	Format string `enum:"text,json" default:"text"`
	Name   string
	TTL    int
	Limit  uint32
	Last   time.Duration
	Users  struct {
		Add struct {
			Name string `arg:""`
		} `cmd:""`
		Ls struct{} `cmd:""`
	} `cmd:""`
}

func TestExplain(t *testing.T) {
	absent := Absent{"play": "nothing is recorded", "users update": "ctl create --force"}
	for _, tt := range []struct {
		args       []string
		fact, hint string
	}{
		{[]string{"usres", "ls"}, `unknown command "usres"; did you mean "users"?`, "ctl --help"},
		{[]string{"users", "lss"}, `unknown command "lss"; did you mean "ls"?`, "ctl users --help"},
		{[]string{"users", "ls", "x"}, `unexpected argument "x"`, "ctl users ls --help"},
		{[]string{"users", "ls", "--formt=json"}, `unknown flag "--formt"; did you mean "--format"?`, "ctl users ls --help"},
		{[]string{"users", "ls", "-z"}, `unknown flag "-z"`, "ctl users ls --help"},
		{[]string{"users", "ls", "--name"}, "--name needs a value", "ctl users ls --help"},
		{[]string{"users", "ls", "--format=xml"}, `--format: "xml" is none of text, json`, "ctl users ls --help"},
		{[]string{"users", "ls", "--ttl=8h"}, `--ttl: "8h" is no whole number in range`, "ctl users ls --help"},
		{[]string{"users", "ls", "--limit=-1"}, `--limit: "-1" is no whole number in range`, "ctl users ls --help"},
		{[]string{"users", "ls", "--last=1day"}, `--last: "1day" is no duration, such as 30m or 8h`, "ctl users ls --help"},
		{[]string{"users", "add"}, `expected "<name>"`, "ctl users add --help"},
		{[]string{"\x1b[2J"}, `unknown command "\x1b[2J"`, "ctl --help"},
		{[]string{"play", "--format=pty", "x"}, `there is no command "play" here`, "nothing is recorded"},
		{[]string{"users", "update", "x"}, `there is no command "users update" here`, "ctl create --force"},
		{[]string{"update"}, `unknown command "update"`, "ctl --help"},
		{[]string{"users", "play"}, `unknown command "play"`, "ctl users --help"},
		{[]string{"users", "ls", "play"}, `unexpected argument "play"`, "ctl users ls --help"},
	} {
		k, err := kong.New(&grammar{}, kong.Name("ctl"), Help(), Global())
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Parse(tt.args)
		var p *sallyport.Problem
		if err = Explain(err, absent); !errors.As(err, &p) || p.Fact != tt.fact || p.Hint != tt.hint || !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%q: %v %+v", tt.args, err, p)
		}
	}
	if err := errors.New("x"); Explain(err, absent) != err || Explain(nil, absent) != nil {
		t.Error("another error was changed")
	}
}

func TestComplete(t *testing.T) {
	for _, tt := range []struct{ in, want []string }{
		{nil, []string{"--help"}},
		{[]string{"help"}, []string{"--help"}},
		{[]string{"help", "users", "ls"}, []string{"users", "ls", "--help"}},
		{[]string{"--version"}, []string{"version", "-x"}},
		{[]string{"-V"}, []string{"version", "-x"}},
		{[]string{"-V", "a"}, []string{"-V", "a"}},
		{[]string{"ls"}, []string{"ls"}},
	} {
		if got := Complete(tt.in, "version", "-x"); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q", tt.in, got)
		}
	}
}

func TestDropEmpty(t *testing.T) {
	t.Setenv("SALLY_X", "")
	t.Setenv("TELEPORT_X", "")
	t.Setenv("SALLY_Y", "y")
	t.Setenv("OTHER_X", "")
	DropEmpty()
	for name, want := range map[string]bool{"SALLY_X": false, "TELEPORT_X": false, "SALLY_Y": true, "OTHER_X": true} {
		if _, ok := os.LookupEnv(name); ok != want {
			t.Errorf("%s: set %v", name, ok)
		}
	}
}
