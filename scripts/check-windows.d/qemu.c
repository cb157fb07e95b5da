/* A stand-in for QEMU's program that says which one it is, and is good for no more. */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	if (argc != 2 || strcmp(argv[1], "-help"))
		return 1;
	puts("QEMU emulator version 9.1.0 (a stand-in)\nusage: qemu-system-x86_64 [options]");
	return 0;
}
