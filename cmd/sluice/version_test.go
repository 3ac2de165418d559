package main

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestPrintVersion(t *testing.T) {
	b := buildInfo{Version: "v1.2.3", Revision: "abc-dirty", Go: "go1.26.8", Platform: "linux/amd64", KernelFloor: "6.8"}
	var text bytes.Buffer
	if err := printVersion(&text, b, "text"); err != nil {
		t.Fatal(err)
	}
	if want := "sluice v1.2.3 (go1.26.8, linux/amd64)\nrevision abc-dirty\nneeds Linux 6.8 or newer\n"; text.String() != want {
		t.Errorf("text %q, want %q", text.String(), want)
	}
	var out bytes.Buffer
	if err := printVersion(&out, b, "json"); err != nil {
		t.Fatal(err)
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"version": "v1.2.3", "revision": "abc-dirty", "goVersion": "go1.26.8", "platform": "linux/amd64", "kernelFloor": "6.8",
	} {
		if back[key] != want {
			t.Errorf("%s is %q, want %q", key, back[key], want)
		}
	}
}

func TestThisBuild(t *testing.T) {
	defer func(v string) { version = v }(version)
	version = "v9"
	if b := thisBuild(); b.Version != "v9" || b.Revision == "" || b.Go == "" {
		t.Errorf("%+v", b)
	}
	version = ""
	if b := thisBuild(); b.Version == "" {
		t.Errorf("%+v", b)
	}
}
