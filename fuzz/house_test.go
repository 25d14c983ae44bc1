package fuzz

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// parserName is how functions are called that read what comes from outside.
var parserName = regexp.MustCompile(`^(Parse|Read|Decode|Unmarshal|Verify|Probe)`)

// TestEveryParserIsFuzzed: below the packages that strangers reach, an exported
// function that reads bytes is called by a file with a fuzz target, beside it or
// here.
func TestEveryParserIsFuzzed(t *testing.T) {
	here := fuzzedIn(t, ".")
	found := 0
	for _, root := range []string{"../alpn", "../identity", "../dataplane"} {
		err := filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || d.Name() == "testdata" {
				return err
			}
			beside := fuzzedIn(t, dir)
			for _, name := range parsersIn(t, dir) {
				found++
				call := regexp.MustCompile(`\b` + name + `\(`)
				if !call.MatchString(beside) && !call.MatchString(here) {
					t.Errorf("%s: %s reads bytes and no file with a fuzz target calls it", dir, name)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 10 {
		t.Errorf("only %d parsers found", found)
	}
}

// fuzzedIn is the text of a folder's test files that hold fuzz targets.
func fuzzedIn(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc Fuzz") {
			all.Write(b)
		}
	}
	return all.String()
}

// parsersIn names the exported functions of a folder that read bytes.
func parsersIn(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && parserName.MatchString(fn.Name.Name) && takesBytes(fn) && !moves(fn) {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

// moves says that a method is io.ReaderFrom's: it moves bytes to where the
// receiver's Write does, and looks at none.
func moves(fn *ast.FuncDecl) bool {
	if fn.Recv == nil || fn.Name.Name != "ReadFrom" || fn.Type.Results == nil || len(fn.Type.Results.List) != 2 {
		return false
	}
	n, ok := fn.Type.Results.List[0].Type.(*ast.Ident)
	return ok && n.Name == "int64"
}

// takesBytes says that a parameter is a slice of bytes or a reader.
func takesBytes(fn *ast.FuncDecl) bool {
	for _, p := range fn.Type.Params.List {
		switch typ := p.Type.(type) {
		case *ast.ArrayType:
			if elem, ok := typ.Elt.(*ast.Ident); ok && elem.Name == "byte" && typ.Len == nil {
				return true
			}
		case *ast.SelectorExpr:
			if typ.Sel.Name == "Reader" {
				return true
			}
		}
	}
	return false
}
