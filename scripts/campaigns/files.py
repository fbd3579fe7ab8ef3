def configure(commands):
    pass
