module github.com/sendense/sendense

go 1.26
