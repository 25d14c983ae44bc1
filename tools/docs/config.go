package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
)

const configHead = `# Configuration

One file, ` + "`/etc/sallyport.yaml`" + ` unless ` + "`--config`" + ` or ` + "`SALLY_CONFIG_FILE`" + ` says otherwise, for every process of a cluster: ` + "`roles`" + ` says
what a process runs, and sections of other roles are left alone. ` + "`sallyport configure`" + ` writes one to start from, ` + "`sallyport start\n--check`" + ` finds its faults, each with line and column, and reads the files that it names but for the join token. Unknown fields are faults. File names are relative to the file that names
them. Resources such as roles and users are not configuration: ` + "`sallyctl create`" + ` takes those.

## Changes

` + "`sallyport reload`" + `, or SIGHUP, makes a running process read its file again. A file with any fault is refused as a whole and
changes nothing; the command, the log and ` + "`sallyport status`" + ` say why. Otherwise what has changed takes effect, and nothing else is
touched: connections that are there go on as they were, also those of a route that is gone. A reload takes:

- ` + "`gateway.routes`, `gateway.upstreams`, `gateway.proxy_protocol`" + `
- ` + "`gateway.certificates`" + `: the files are read again even when their names are the same, and new handshakes get what is in them. A
  certificate that is not good now is refused.
- ` + "`gateway.limits`" + `, but for those that say otherwise below: they hold from the next connection on.
- ` + "`agent.ssh`, `agent.databases`, `agent.tcp`, `agent.apps`, `agent.kubernetes`, `agent.group`" + `: auth is told, and new sessions find what it has granted.
- ` + "`log.level`, `upgrade.drain`" + `

Everything else, such as ` + "`gateway.listen`" + `, takes effect by ` + "`sallyport upgrade`" + `, which keeps connections, or by a restart; ` + "`roles` and `data_dir`" + ` by a
restart alone. The reload says which of these fields have changed and have no effect yet.
`

// configuration is the page of all fields.
func configuration(root string, p programs) (string, error) {
	structs, err := structsOf(filepath.Join(root, "cmd", "sallyport", "config.go"))
	if err != nil {
		return "", err
	}
	example, err := p.output("sallyport", "configure", "--cluster=gw.example.com")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(generated + configHead)
	fmt.Fprintf(&b, "\n## Example\n\n```yaml\n%s```\n\n## Fields\n", example)
	if err := section(&b, structs, "config", ""); err != nil {
		return "", err
	}
	return b.String(), nil
}

// structsOf finds the structs of a file by their names.
func structsOf(path string) (map[string]*ast.StructType, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	out := map[string]*ast.StructType{}
	ast.Inspect(file, func(n ast.Node) bool {
		if t, ok := n.(*ast.TypeSpec); ok {
			if s, ok := t.Type.(*ast.StructType); ok {
				out[t.Name.Name] = s
			}
		}
		return true
	})
	return out, nil
}

// section writes the table of one struct, and those of the structs below it.
func section(b *strings.Builder, structs map[string]*ast.StructType, name, path string) error {
	if path != "" {
		fmt.Fprintf(b, "\n### %s\n", path)
	}
	b.WriteString("\n| field | form | meaning |\n|---|---|---|\n")
	var below []func() error
	for _, f := range structs[name].Fields.List {
		field, err := fieldOf(f)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", field.name, field.form(structs), strings.ReplaceAll(field.comment, "|", "\\|"))
		if structs[field.of] != nil {
			where := strings.TrimPrefix(path+"."+field.name+field.suffix, ".")
			below = append(below, func() error { return section(b, structs, field.of, where) })
		}
	}
	for _, f := range below {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// field is one line of a table.
type field struct {
	name, comment string
	of            string // the type, or that of the elements
	suffix        string // "[]" for lists, ".NAME" for mappings
}

func fieldOf(f *ast.Field) (field, error) {
	tag, err := strconv.Unquote(f.Tag.Value)
	if err != nil {
		return field{}, err
	}
	out := field{name: reflect.StructTag(tag).Get("yaml"), comment: strings.TrimSpace(f.Comment.Text())}
	switch t := f.Type.(type) {
	case *ast.Ident:
		out.of = t.Name
	case *ast.StarExpr:
		out.of = t.X.(*ast.Ident).Name
	case *ast.ArrayType:
		out.of, out.suffix = t.Elt.(*ast.Ident).Name, "[]"
	case *ast.MapType:
		out.of, out.suffix = t.Value.(*ast.Ident).Name, ".NAME"
	}
	if out.name == "" || out.comment == "" || out.of == "" {
		return field{}, fmt.Errorf("field %s: a yaml tag and a comment are needed", f.Names[0].Name)
	}
	return out, nil
}

// form says in a word or two what is written there.
func (f field) form(structs map[string]*ast.StructType) string {
	one := map[string]string{"string": "text", "int": "number", "bool": "`true` or `false`", "duration": "duration"}[f.of]
	if structs[f.of] != nil {
		one = "fields"
	}
	switch f.suffix {
	case "[]":
		return "list of " + one
	case ".NAME":
		return "names with " + one
	}
	return one
}
