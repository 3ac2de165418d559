package instance

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestMain is also the second process of TestHolderIsNamed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("INSTANCE_TEST_HOLD"); dir != "" {
		if _, err := Acquire(dir, ""); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(0) // without Release, as a process that is killed
	}
	os.Exit(m.Run())
}

func TestSecondIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	first, err := Acquire(dir, "/pins/a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Acquire(dir, "")
	if want := fmt.Sprintf("another sluice (pid %d) serves this network namespace (lock %s/netns-", os.Getpid(), dir); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("second instance: %v, want %q...", err, want)
	}
	if err := first.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
	again, err := Acquire(dir, "/pins/a")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
}

// TestPinsAreLockedApart plays two namespaces by taking away the first lock.
func TestPinsAreLockedApart(t *testing.T) {
	dir := t.TempDir()
	l := &Lock{dir: dir}
	if err := l.take("pins.lock", "pinPath /pins/a"); err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	err := (&Lock{dir: dir}).take("pins.lock", "pinPath /pins/a")
	if err == nil || !strings.Contains(err.Error(), "serves pinPath /pins/a") {
		t.Errorf("the same pins: %v", err)
	}
	other := &Lock{dir: dir}
	if err := other.take("pins2.lock", "pinPath /pins/b"); err != nil {
		t.Errorf("other pins: %v", err)
	}
	if err := other.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "pins.lock")); err != nil {
		t.Errorf("releasing one lock removed the other: %v", err)
	}
}

func TestHolderIsNamed(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "INSTANCE_TEST_HOLD="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "held\n" {
		t.Fatalf("the holder says %q", line)
	}
	_, err = Acquire(dir, "")
	if want := fmt.Sprintf("another sluice (pid %d)", cmd.Process.Pid); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %q...", err, want)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	l, err := Acquire(dir, "")
	if err != nil {
		t.Fatalf("after the holder's death: %v", err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

// TestRemovedFileIsNoLock plays the one who opens the file just before its
// holder removes it: the lock it then gets is on a file that nobody else will
// ever find.
func TestRemovedFileIsNoLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	late := open()
	if !same(late, path) {
		t.Error("a file is not the same as itself")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if same(late, path) {
		t.Error("the removed file passes for a file that is not there")
	}
	open()
	if same(late, path) {
		t.Error("the removed file passes for its successor")
	}
}

// TestComingAndGoing lets many take and release at once.
func TestComingAndGoing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	var inside sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				l := &Lock{dir: dir}
				if l.take("x.lock", "x") != nil {
					continue
				}
				if !inside.TryLock() {
					t.Error("two hold the lock")
					l.Release()
					return
				}
				inside.Unlock()
				if err := l.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestUnusableFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(file, ""); err == nil || !strings.HasPrefix(err.Error(), "runDir: ") {
		t.Errorf("a file as the folder: %v", err)
	}
	dir := t.TempDir()
	l := &Lock{dir: dir}
	if err := os.Symlink(file, filepath.Join(dir, "x.lock")); err != nil {
		t.Fatal(err)
	}
	if err := l.take("x.lock", "x"); err == nil {
		t.Error("a symbolic link was followed")
	}
}
