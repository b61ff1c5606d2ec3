module portreeve

go 1.19
