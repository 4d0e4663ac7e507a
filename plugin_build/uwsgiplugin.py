NAME = "consul"
CFLAGS = []
LDFLAGS = []
LIBS = ["-lcurl"]
GCC_LIST = ["plugin", "options", "agent"]
