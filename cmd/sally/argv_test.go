package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/usage"
)

// said is what a command line means: the command, then each flag and argument
// that is not as it is without being said.
func said(t *testing.T, g *parsed) string {
	t.Helper()
	out := []string{usage.Path(g.ctx.Selected())}
	add := func(name string, v *kong.Value) {
		if x := v.Target; !x.IsZero() && (!v.HasDefault || fmt.Sprint(x) != v.Default) {
			out = append(out, fmt.Sprintf("%s=%v", name, x))
		}
		if v.HasDefault && v.Target.Kind() == reflect.Bool && v.Target.IsZero() {
			out = append(out, name+"=false")
		}
	}
	for n := g.ctx.Selected(); n != nil; n = n.Parent {
		for _, f := range n.Flags {
			if f.Name != "help" {
				add(f.Name, f.Value)
			}
		}
		for _, a := range n.Positional {
			if a.Target.Kind() == reflect.Slice && a.Target.Len() > 0 {
				out = append(out, fmt.Sprintf("%s=%q", a.Name, a.Target))
			} else {
				add(a.Name, a)
			}
		}
	}
	slices.Sort(out[1:])
	return strings.Join(out, " ")
}

func TestArgv(t *testing.T) {
	for _, tt := range []struct {
		argv string
		env  []string
		want string
	}{
		{argv: "sally login", want: "login"},
		{argv: "tsh login --proxy=gw.test --user alice", want: "login proxy=gw.test user=alice"},
		{argv: "tsh --proxy gw.test:443 --user=alice login --ttl 60 root", want: "login cluster=root proxy=gw.test:443 ttl=60 user=alice"},
		{argv: "tsh login --auth=local --browser=none --mfa-mode=otp --mlock=off --skip-version-check --bind-addr=:1", want: "login auth=local bind-addr=:1 browser=none mfa-mode=otp mlock=off skip-version-check=true"},
		{argv: "sally login --password-file f --otp=123456 --no-insecure", want: "login otp=123456 password-file=f"},
		{argv: "sally logout --proxy=gw.test --user=bob", want: "logout proxy=gw.test user=bob"},
		{argv: "sally status -f json", want: "status format=json"},
		{argv: "sally status --format=yaml -v -d", want: "status debug=true format=yaml verbose=true"},
		{argv: "sally -d status", want: "status debug=true"},
		{argv: "sally ls", want: "ls"},
		{argv: "sally ls env=prod,team=web -v --format names", want: `ls format=names labels=["env=prod,team=web"] verbose=true`},
		{argv: "sally ls --search=a,b -R -c leaf zone=x", want: `ls all=true cluster=leaf labels=["zone=x"] search=[a b]`},

		{argv: "sally ssh web", want: "ssh [user@]host=web"},
		{argv: "sally ssh root@web ls -la --color=auto", want: `ssh [user@]host=root@web command=["ls" "-la" "--color=auto"]`},
		{argv: "sally ssh -l root web id", want: `ssh [user@]host=web command=["id"] login=root`},
		{argv: "sally -lroot ssh -p22 web", want: "ssh [user@]host=web login=root port=22"},
		{argv: "sally ssh -t web top -d 1", want: `ssh [user@]host=web command=["top" "-d" "1"] tty=true`},
		{argv: "sally ssh web -t top -d 1", want: `ssh [user@]host=web command=["top" "-d" "1"] tty=true`},
		{argv: "sally ssh -tt web", want: "ssh [user@]host=web tty=true"},
		{argv: "sally ssh web -- ls -la", want: `ssh [user@]host=web command=["ls" "-la"]`},
		{argv: "sally ssh -- web ls -t", want: `ssh [user@]host=web command=["ls" "-t"]`},
		{argv: "sally ssh web echo -- x", want: `ssh [user@]host=web command=["echo" "--" "x"]`},
		{argv: "sally ssh web --proxy=gw.test id --proxy=x", want: `ssh [user@]host=web command=["id" "--proxy=x"] proxy=gw.test`},
		{argv: "sally ssh -o SendEnv=A,B -oSetEnv=C=1 web", want: "ssh [user@]host=web option=[SendEnv=A,B SetEnv=C=1]"},
		{argv: "sally ssh -T -q web id", want: `ssh [user@]host=web command=["id"] no-tty=true quiet=true`},
		{argv: "sally ssh --no-resume --no-relogin web", want: "ssh [user@]host=web no-resume=true relogin=false"},
		{argv: "tsh ssh --no-enable-escape-sequences web", want: "ssh [user@]host=web enable-escape-sequences=false"},
		{argv: "tsh --no-enable-escape-sequences --request-reason=x ssh web", want: "ssh [user@]host=web enable-escape-sequences=false request-reason=x"},
		{argv: "ssh web", want: "ssh [user@]host=web"},
		{argv: "/usr/local/bin/ssh -l root -p 22 -x -a -oForwardAgent=no web rsync --server -vlogDtpr . /x", want: `ssh [user@]host=web command=["rsync" "--server" "-vlogDtpr" "." "/x"] login=root no-agent=true no-x11=true option=[ForwardAgent=no] port=22`},
		{argv: "ssh -x -oPermitLocalCommand=no -l root -s -- web sftp", want: `ssh [user@]host=web command=["sftp"] login=root no-x11=true option=[PermitLocalCommand=no] subsystem=true`},
		{argv: "ssh -o SendEnv=GIT_PROTOCOL git@web git-upload-pack '/x.git'", want: `ssh [user@]host=git@web command=["git-upload-pack" "'/x.git'"] option=[SendEnv=GIT_PROTOCOL]`},
		{argv: "scp -r -p -q -P 22 a b root@web:c", want: "scp file=[\"a\" \"b\" \"root@web:c\"] port=22 preserve=true quiet=true recursive=true"},
		{argv: "sally ssh -N -L 8080:localhost:80 -R 1:a:2 -D1080 -A web", want: "ssh [user@]host=web dynamic-forward=[1080] forward-agent=true forward=[8080:localhost:80] no-remote-exec=true remote-forward=[1:a:2]"},
		{argv: "ssh -vvv -2 -C -F /dev/null -S none -e none web", want: "ssh [user@]host=web compress=true config-file=/dev/null control-path=none escape-char=none protocol-2=true verbose=true"},
		{argv: "scp -v -C -B -O -3 -T -4 -o BatchMode=yes -oUser=bob a web:b", want: `scp batch=true compress=true file=["a" "web:b"] ipv4=true no-check=true option=[BatchMode=yes User=bob] original=true through=true verbose=true`},
		{argv: "ssh -V", want: "ssh show-version=true"},

		{argv: "sally config -p 22", want: "config port=22"},
		{argv: "tsh proxy ssh --cluster=gw.test --proxy=gw.test:443 root@web:3022", want: "proxy ssh cluster=gw.test destination=root@web:3022 proxy=gw.test:443"},
		{argv: "tsh proxy ssh --no-resume --relogin web", want: "proxy ssh destination=web no-resume=true"},
		{argv: "tsh proxy db --tunnel -p 5433 --db-user=reader --db-name shop orders", want: "proxy db db-name=shop db-user=reader name=orders port=5433 tunnel=true"},
		{argv: "tsh proxy db orders --listen=127.0.0.1:1", want: "proxy db listen=127.0.0.1:1 name=orders"},
		{argv: "tsh proxy app echo -p 1234:5678", want: "proxy app name=echo port=1234:5678"},
		{argv: "tsh aws --app cloud --aws-role r s3 ls --recursive --app x", want: `aws app=cloud args=["s3" "ls" "--recursive" "--app" "x"] aws-role=r`},
		{argv: "sally aws -x terraform -- plan -out f", want: `aws args=["--" "plan" "-out" "f"] exec=terraform`},
		{argv: "sally aws -- s3 ls", want: `aws args=["--" "s3" "ls"]`},
		{argv: "tsh proxy aws --app=cloud -p 8001 -e -f powershell", want: "proxy aws app=cloud endpoint-url=true format=powershell port=8001"},
		{argv: "tsh apps login --aws-role=r cloud", want: "apps login aws-role=r name=cloud"},
		{argv: "sally proxy tcp --stdio echo", want: "proxy tcp name=echo stdio=true"},
		{argv: "tsh db ls -v --format=json env=prod", want: `db ls format=json labels=["env=prod"] verbose=true`},
		{argv: "tsh db login -u reader -n shop orders", want: "db login db-name=shop db-user=reader name=orders"},
		{argv: "tsh db logout", want: "db logout"},
		{argv: "tsh db connect --db-user=reader --request-reason=x orders", want: "db connect db-user=reader name=orders request-reason=x"},
		{argv: "sally db connect orders -u reader -- -c select -u x", want: `db connect args=["--" "-c" "select" "-u" "x"] db-user=reader name=orders`},
		{argv: "tsh db config -f cmd orders", want: "db config format=cmd name=orders"},
		{argv: "tsh db env", want: "db env"},
		{argv: "tsh app ls -v env=prod", want: `app ls labels=["env=prod"] verbose=true`},
		{argv: "tsh clusters -q -v", want: "clusters quiet=true verbose=true"},
		{argv: "tsh env --unset", want: "env unset=true"},
		{argv: "tsh version --client -f json", want: "version client=true format=json"},
		{argv: "sally --version", want: "version client=true"},
		{argv: "sally completion bash", want: "completion shell=bash"},

		{argv: "sally ls", env: []string{"SALLY_PROXY=a", "TELEPORT_PROXY=b"}, want: "ls proxy=a"},
		{argv: "sally ls", env: []string{"TELEPORT_PROXY=b"}, want: "ls proxy=b"},
		{argv: "sally ls", env: []string{"SALLY_PROXY=", "TELEPORT_PROXY=b"}, want: "ls proxy=b"},
		{argv: "sally ls --proxy=c", env: []string{"SALLY_PROXY=a", "TELEPORT_PROXY=b"}, want: "ls proxy=c"},
		{argv: "sally ls", env: []string{"TELEPORT_CLUSTER=a", "TELEPORT_SITE=b"}, want: "ls cluster=a"},
		{argv: "sally ls", env: []string{"TELEPORT_SITE=b"}, want: "ls cluster=b"},
		{argv: "sally ls", env: []string{"SALLY_CLUSTER=s", "TELEPORT_CLUSTER=a"}, want: "ls cluster=s"},
		{argv: "sally ssh web", env: []string{"TELEPORT_LOGIN=root", "TELEPORT_USER=alice", "TELEPORT_ADD_KEYS_TO_AGENT=no"}, want: "ssh [user@]host=web add-keys-to-agent=no login=root user=alice"},
		{argv: "sally ssh web", env: []string{"SALLY_LOGIN=ubuntu", "TELEPORT_LOGIN=root", "SALLY_USER=bob", "TELEPORT_USER=alice", "SALLY_ADD_KEYS_TO_AGENT=yes", "TELEPORT_ADD_KEYS_TO_AGENT=no"}, want: "ssh [user@]host=web add-keys-to-agent=yes login=ubuntu user=bob"},
		{argv: "tsh login", env: []string{"TELEPORT_LOGIN_BROWSER=none", "TELEPORT_AUTH=local", "TELEPORT_USE_LOCAL_SSH_AGENT=false"}, want: "login auth=local browser=none use-local-ssh-agent=false"},
		{argv: "sally status", env: []string{"TELEPORT_DEBUG=rubbish"}, want: "status"},
	} {
		t.Run(tt.argv, func(t *testing.T) {
			clearEnv(t)
			for _, kv := range tt.env {
				name, value, _ := strings.Cut(kv, "=")
				t.Setenv(name, value)
			}
			usage.DropEmpty()
			g, err := parse(strings.Fields(tt.argv), io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(tt.argv, "ssh ") && g.ctx.Selected().Name == "ssh" && g.ctx.Selected().Parent.Parent == nil {
				if err := g.cli.SSH.options(); err != nil {
					t.Fatal(err)
				}
			}
			if got := said(t, g); got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

// clearEnv takes away what the grammar reads, for one test.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "SALLY_") || strings.HasPrefix(name, "TELEPORT_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
}

func TestArgvFaults(t *testing.T) {
	clearEnv(t)
	for argv, want := range map[string]string{
		"sally sttus":             `unknown command "sttus"; did you mean "status"?` + "\nhint: sally --help",
		"sally db lgin x":         `unknown command "lgin"; did you mean "login"?` + "\nhint: sally db --help",
		"tsh proxy dbb":           `unknown command "dbb"; did you mean "db"?` + "\nhint: tsh proxy --help",
		"sally zzzzzzz":           `unknown command "zzzzzzz"` + "\nhint: sally --help",
		"sally ls --formt=json":   `unknown flag "--formt"; did you mean "--format"?` + "\nhint: sally ls --help",
		"sally ls -Z":             `unknown flag "-Z"` + "\nhint: sally ls --help",
		"sally ssh --tyy web":     `unknown flag "--tyy"; did you mean one of "--ttl", "--tty"?` + "\nhint: sally ssh --help",
		"sally ssh web --tyy id":  `unknown flag "--tyy"; did you mean one of "--ttl", "--tty"?` + "\nhint: sally ssh --help",
		"tsh play x":              `there is no command "play" here` + "\nhint: sessions are not recorded",
		"tsh mfa ls":              `there is no command "mfa" here`,
		"sally kube exec -it p":   `there is no command "kube exec" here` + "\nhint: sally kube login",
		"sally join":              `there is no command "join" here`,
		"sally config x":          `unexpected argument "x"` + "\nhint: sally config --help",
		"sally status --format":   `--format needs a value`,
		"sally login --ttl=x":     `--ttl: "x" is no whole number`,
		"sally status -f xml":     `--format: "xml" is none of text, json, yaml`,
		"sally db login":          `expected "<name>"`,
		"sally completion":        `expected "<shell>"`,
		"sally completion tcsh":   `is none of`,
		"sally -k sometimes ls":   `--add-keys-to-agent: "sometimes" is none of auto, no, yes, only`,
		"sally ls --debug=perhap": `bool value`,
	} {
		_, err := parse(strings.Fields(argv), io.Discard, io.Discard)
		var b strings.Builder
		if code := fail.Report(&b, err); code != 1 || !strings.Contains(b.String(), want) {
			t.Errorf("%s: exit %d\n%s\nwant %s", argv, code, b.String(), want)
		}
	}
}

// TestAbsent: what is said not to be here is not here.
func TestAbsent(t *testing.T) {
	clearEnv(t)
	for path, instead := range absent() {
		_, err := parse(append([]string{"tsh"}, strings.Fields(path)...), io.Discard, io.Discard)
		var p *sallyport.Problem
		if !errors.As(err, &p) || p.Fact != fmt.Sprintf("there is no command %q here", path) || p.Hint != instead {
			t.Errorf("%s: %v %+v", path, err, p)
		}
	}
}

func TestUnserved(t *testing.T) {
	clearEnv(t)
	for argv, want := range map[string]string{
		"sally -J jump ssh web":                  "jump host",
		"sally --headless ssh web":               "headless",
		"sally --piv-slot=9a ls":                 "security keys",
		"sally login --auth=github":              `login by "github"`,
		"sally login --request-roles=dba":        "access requests",
		"sally ssh":                              "no node is named",
		"sally ssh root@env=prod id":             "by label",
		"sally ssh -N web id":                    "-N runs nothing",
		"sally scp a":                            "a source and a target",
		"sally scp a b":                          "between this machine and one node",
		"sally scp web:a db:b":                   "between this machine and one node",
		"sally ssh -X web":                       "X11",
		"sally ssh -f web id":                    "background",
		"sally ssh --invite=bob web":             "--invite",
		"sally ssh -s web":                       "name of a subsystem",
		"sally ssh -o ProxyJump=x web":           "ProxyJump=x",
		"sally ssh -o nonsense web":              "not KEY=VALUE",
		"sally ls --query=name==1":               "query: at character 7",
		"sally db ls --query=nmae==\"a\"":        `there is no "nmae"`,
		"sally tcp ls --query=name==\"a\"":       "Not logged in",
		"sally db connect -r dba orders":         "--db-roles",
		"sally db login --labels=a=b orders":     "--labels",
		"sally proxy app echo -p 1:2":            "Not logged in",
		"sally proxy db --db-user=u --query=x a": "--query",
	} {
		p := newProgram(t)
		err := p.run(strings.Fields(argv))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", argv, err, want)
		}
	}
}

// TestHelp: every command has help with examples, and the examples parse.
func TestHelp(t *testing.T) {
	clearEnv(t)
	g, err := parse([]string{"sally", "version"}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range g.kong.Model.Leaves(true) {
		path := usage.Path(n)
		var out strings.Builder
		_, err := parse(append([]string{"sally"}, append(strings.Fields(path), "--help")...), &out, io.Discard)
		if err != (fail.Exit{Code: 0}) {
			t.Errorf("%s --help: %v", path, err)
		}
		for _, want := range []string{"Usage: sally " + path, n.Help, "Examples:\n", "Flags of every command:"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s --help does not say %q:\n%s", path, want, out.String())
			}
		}
		for line := range strings.Lines(n.Detail) {
			line, _, _ = strings.Cut(line, "  #")
			line = strings.NewReplacer("source <(", "", "eval \"$(", "", ")\"", "", ")", "", "'select 1'", "select").Replace(strings.TrimSpace(line))
			line, _, _ = strings.Cut(line, " >")
			if !strings.HasPrefix(line, "sally ") || strings.Contains(line, " writes ") {
				continue
			}
			if _, err := parse(strings.Fields(line), io.Discard, io.Discard); err != nil {
				t.Errorf("an example of %s: %s: %v", path, line, err)
			}
		}
	}
}
